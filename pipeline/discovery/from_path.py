"""Search for scans below a folder, in a manifest or in a file, with their labels; no voxel is read.

*Reads*: folder entries, manifests, JSON files of label names, DICOM headers. *Writes*: `Discovery`.

Ids in a folder: the parts of a scan's relative path joined by '_', without the suffix and without folders
named images, imagesTr, imagesTs or image. The data set is the searched folder. A DICOM series has the id of
its folder, with the series' number if several share a folder. If two scans would get one id, both get a short
hash too. Scans of an .npz set (`npz_sets`) are called SET_train_0007, and their data set is SET. Ids in a
manifest are used as they are, or refused. The layout of a folder is recognised (`layouts`). Labels are
paired by the manifest, by the layout, or by name (`pairing`). Names of label values come from JSON files
(`label_names`).
"""

from __future__ import annotations

from pathlib import Path

from pipeline.discovery.from_folder import discover_folder
from pipeline.discovery.from_manifest import discover_manifest
from pipeline.discovery.layouts.table import AUTO
from pipeline.discovery.manifest_table import MANIFEST_SUFFIXES
from pipeline.discovery.sources import Discovery, LabelSource, Source
from pipeline.errors import ConfigError, UnreadableFile
from pipeline.formats import SeriesRules

__all__ = ["Discovery", "LabelSource", "Source", "discover"]


def discover(raw: Path, rules: SeriesRules, *, layout: str = AUTO, follow_links: bool = False) -> Discovery:
    """Return all scans at a path: a folder, a manifest (.csv, .tsv, .jsonl), one image file or one set.

    Args:
        raw: The path.
        rules: How regular DICOM series must be, and the frame of 4D series.
        layout: Layout of a folder, one of `LAYOUT_NAMES`; "auto" to recognise it.
        follow_links: Whether links in a folder that lead to folders elsewhere are followed.

    Returns:
        Sources and failures, sorted by id, each id once; and notes for the user.

    Raises:
        UnreadableFile: There is nothing at `raw`, or it cannot be listed.
        ManifestError: The manifest as a whole cannot be understood.
        ConfigError: There is nothing of this layout.
    """
    raw = Path(raw)
    if not raw.exists():
        raise UnreadableFile(
            "there is no such file or folder", path=raw, remedy="Check the path of the scans"
        )
    if raw.is_dir():
        return discover_folder(raw, rules, layout=layout, follow_links=follow_links)
    if layout != AUTO:
        raise ConfigError(f"only a folder has a layout, {raw.name} is a file. Leave --layout {layout} out")
    if raw.suffix.lower() in MANIFEST_SUFFIXES:
        return discover_manifest(raw, rules)
    return discover_folder(raw.parent, rules, only=raw)
