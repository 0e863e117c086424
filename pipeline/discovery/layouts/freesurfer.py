"""FreeSurfer: a folder mri for each subject, with one scan, its segmentations, and images made of it.

    bert/mri/orig.mgz                                        the scan; without it T1, nu, norm, brain
    bert/mri/aseg.mgz, aparc+aseg.mgz, wmparc.mgz, ribbon.mgz   label maps
    bert/mri/nu.mgz, T1.mgz, brain.mgz, wm.mgz, orig/001.mgz    the same scan again: left out, with a note

Values of the label maps are those of FreeSurferColorLUT.txt, which subjects do not hold: they have no names.
A label on another grid is left out with a note. In a BIDS data set the case is the subject.
"""

from __future__ import annotations

from pathlib import Path

from pipeline.discovery.layouts.layout import Files, Layout, LayoutFind, LayoutScan
from pipeline.discovery.name_words import label_word, name_words
from pipeline.discovery.sources import LabelSource, id_from_parts
from pipeline.formats import stem_of

_FOLDER = "mri"
_SCANS = ("orig", "T1", "nu", "norm", "brain")
"""Names of the scan as FreeSurfer processes it, the least processed first."""

_OF_BIDS = ("derivatives", "sourcedata")


def find_freesurfer(files: Files) -> LayoutFind:
    """Return the scan of each subject with its segmentations."""
    inside: dict[Path, list[Path]] = {}
    for path in files.volumes:
        if _FOLDER in path.parent.parts:
            depth = path.parts.index(_FOLDER) + 1
            inside.setdefault(Path(*path.parts[:depth]), []).append(path)
    scans, taken, num_others = [], set[Path](), 0
    for folder, paths in sorted(inside.items()):
        stems = {stem_of(path.name): path for path in paths if path.parent == folder}
        name = next((name for name in _SCANS if name in stems), None)
        if name is None or not any(path.suffix.lower() in (".mgz", ".mgh") for path in stems.values()):
            continue
        labels = [path for stem, path in sorted(stems.items()) if _is_label(stem)]
        scans.append(
            LayoutScan(
                image=stems[name],
                labels=tuple(_label(files.root / path) for path in labels),
                modality="mr",
                case=_bids_case(folder),
            )
        )
        taken |= set(paths)
        num_others += len(paths) - len(labels) - 1
    notes = (
        f"{num_others} images of FreeSurfer left out, which are the same scans before or after a step of it "
        "(--layout plain takes every file)",
    )
    return LayoutFind(scans=tuple(scans), taken=frozenset(taken), notes=notes if num_others else ())


def _is_label(stem: str) -> bool:
    words = name_words(stem)
    return "ribbon" in words or label_word(words) is not None


def _label(path: Path) -> LabelSource:
    """Return a segmentation, named like its file."""
    return LabelSource(name=id_from_parts([stem_of(path.name)]), path=path, value_names=None, shared=True)


def _bids_case(folder: Path) -> Path | None:
    """Return the case that BIDS has for a subject of FreeSurfer, or None outside of such a data set."""
    subject = folder.parent.name.split("_ses-")[0]
    above = folder.parent.parent.parts
    depth = next((i for i, part in enumerate(above) if part in _OF_BIDS), None)
    return Path(*above[:depth], subject) if subject.startswith("sub-") and depth is not None else None


FREESURFER = Layout(
    name="freesurfer",
    title="FreeSurfer",
    wants="a folder mri with orig.mgz or T1.mgz for each subject",
    find=find_freesurfer,
)
