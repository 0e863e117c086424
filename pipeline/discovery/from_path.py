"""Finding the scans below a folder or in a manifest, with their labels, without reading a pixel.

*Reads*: folder entries, manifests, JSON files of label names, DICOM headers. *Writes*: `Discovery`.

Ids of a folder's scans are the parts of their relative path joined by '_', without the suffix and without
folders named images, imagesTr, imagesTs or image; their data set is the folder searched; a DICOM series takes
its folder's, with the series' number where several share a folder. Where two scans would get one id, both get
a short hash as well. Scans of an .npz set (`image_sets`) are called SET_train_0007 and are of the data
set SET. Ids of a manifest are taken as they are, or refused. Labels are paired by the manifest, or by name
(`pairing`); label value names come from JSON files (`label_names`).
"""

from __future__ import annotations

from pathlib import Path

from pipeline.discovery.from_folder import discover_folder
from pipeline.discovery.from_manifest import discover_manifest
from pipeline.discovery.manifest_table import MANIFEST_SUFFIXES
from pipeline.discovery.sources import Discovery, LabelSource, Source, SourceFailure
from pipeline.errors import UnreadableFile
from pipeline.formats import SeriesRules

__all__ = ["Discovery", "LabelSource", "Source", "SourceFailure", "discover"]


def discover(raw: Path, rules: SeriesRules) -> Discovery:
    """Everything to read at a place: a folder, a manifest (.csv, .tsv, .jsonl), one image file or set.

    Args:
        raw: The place.
        rules: How DICOM slices may be spaced, and the frame of 4D series.

    Returns:
        Sources and failures, sorted by id, each id once, and notes for people.

    Raises:
        UnreadableFile: There is nothing at `raw`, or it cannot be listed.
        ManifestError: The manifest as a whole makes no sense.
    """
    raw = Path(raw)
    if not raw.exists():
        raise UnreadableFile(
            "there is no such file or folder", path=raw, remedy="Check the path of the scans"
        )
    if raw.is_dir():
        return discover_folder(raw, rules)
    if raw.suffix.lower() in MANIFEST_SUFFIXES:
        return discover_manifest(raw, rules)
    return discover_folder(raw.parent, rules, only=raw)
