"""Every layout from a drawn tree: scans, labels, names, modality, split and case; nothing is lost."""

from __future__ import annotations

import re
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from pipeline.discovery import (
    LAYOUT_NAMES,
    Discovery,
    Source,
    choices_digest,
    discover,
    source_digest,
    source_stat,
)
from pipeline.errors import ConfigError, LabelMismatch
from pipeline.ingest import IngestConfig, RawScan, read_source
from tests.pipeline.discovery.layouts import drawn_trees
from tests.pipeline.discovery.layouts.drawn_trees import (
    ORGANS,
    TREES,
    drawn,
    write,
    write_labels,
    write_mask,
)

CONFIG = IngestConfig()
RULES = CONFIG.series_rules


def found(root: Path, layout: str = "auto") -> Discovery:
    return discover(root, RULES, layout=layout)


def make(root: Path, draw: Callable[[Path], None]) -> Path:
    folder = root / "RAW"
    folder.mkdir()
    draw(folder)
    return folder


def read(discovery: Discovery, scan_id: str) -> RawScan:
    return read_source(source(discovery, scan_id), CONFIG)


def source(discovery: Discovery, scan_id: str) -> Source:
    return next(one for one in discovery.sources if one.scan_id == scan_id)


def said(discovery: Discovery) -> dict[str, tuple[str | None, str, str, tuple[str, ...]]]:
    return {
        s.scan_id: (s.modality, s.split, s.case, tuple(x.name for x in s.labels)) for s in discovery.sources
    }


EXPECTED = {
    drawn_trees.nnunet: {
        **{
            f"Dataset001_Tumour_p{k}_{c:04d}": (
                "mr",
                "train" if k < 3 else "test",
                f"Dataset001_Tumour/p{k}",
                ("label",) if k < 3 else (),
            )
            for k in (1, 2, 3)
            for c in (0, 1)
        },
        "Dataset002_Organs_q1_0000": ("ct", "train", "", ("label",)),
    },
    drawn_trees.decathlon: {
        "BRATS_001_FLAIR": ("mr", "train", "BRATS_001", ("label",)),
        "BRATS_001_t1gd": ("mr", "train", "BRATS_001", ("label",)),
        "BRATS_002_FLAIR": ("mr", "test", "BRATS_002", ()),
        "BRATS_002_t1gd": ("mr", "test", "BRATS_002", ()),
    },
    drawn_trees.bids: {
        "sub-01_ses-1_anat_sub-01_ses-1_T1w": ("mr", "", "sub-01", ("dseg",)),
        "sub-01_ses-1_anat_sub-01_ses-1_T2w": ("mr", "", "sub-01", ("dseg", "masks")),
        "sub-01_ses-2_anat_sub-01_ses-2_T1w": ("mr", "", "sub-01", ()),
        "sub-02_anat_sub-02_FLAIR": ("mr", "", "sub-02", ()),
        "sub-02_ct_sub-02_ct": ("ct", "", "sub-02", ()),
    },
    drawn_trees.totalsegmentator: {
        "s0001_ct": ("ct", "train", "", ("segmentations",)),
        "s0002_mri": ("mr", "val", "", ("segmentations",)),
    },
    drawn_trees.freesurfer: {
        "bert_mri_orig": ("mr", "", "", ("aparc-aseg", "aseg", "ribbon")),
        "ernie_mri_T1": ("mr", "", "", ()),
    },
    drawn_trees.downloads: {
        "Case00": (None, "", "", ("seg",)),
        "Scans_c_001": (None, "", "", ("lung_mask",)),
        "UCSF-1_T1": (None, "", "", ("tumor_seg",)),
        "case_00000_imaging": (None, "", "", ("seg",)),
        "img_img0001": (None, "", "", ("label",)),
        "volume-0": (None, "", "", ("seg",)),
    },
    drawn_trees.mask_folders: {"a_p01": (None, "", "", ("masks",)), "b_p02": (None, "", "", ("masks",))},
    drawn_trees.brats: {
        **{
            f"BraTS2021_00002_BraTS2021_00002_{c}": ("mr", "", "BraTS2021_00002", ("seg",))
            for c in ("flair", "t1", "t1ce", "t2")
        },
        **{
            f"BraTS-GLI-00003-{v}_BraTS-GLI-00003-{v}-{c}": (
                "mr",
                "",
                "BraTS-GLI-00003",
                ("seg",) * (v == "000"),
            )
            for v in ("000", "001")
            for c in ("t1n", "t2f")
        },
        "STS_003_CT_image": ("ct", "", "STS_003", ("mask",)),
        "STS_003_MR_T1_image": ("mr", "", "STS_003", ()),
        "STS_003_PET_image": ("pet", "", "STS_003", ("mask",)),
    },
    drawn_trees.plain: {
        "p01": (None, "", "", ("seg",)),
        "p02_ct": (None, "", "", ()),
        "p03": (None, "", "", ()),
    },
}


LEFT_OUT = re.compile(r"\d+ (BIDS files|images of FreeSurfer) left out")


@pytest.mark.parametrize("layout", TREES)
def test_a_layout_is_recognised_and_tells_modality_split_case_and_labels(tmp_path: Path, layout: str) -> None:
    for draw in TREES[layout]:
        (tmp_path / draw.__name__).mkdir()
        root = make(tmp_path / draw.__name__, draw)
        by_itself = found(root)
        assert said(by_itself) == EXPECTED[draw]
        assert not by_itself.failures
        assert found(root, layout).sources == by_itself.sources
        assert any(note.startswith("layout: ") for note in found(root, layout).notes)
        for one in by_itself.sources:
            read_source(one, CONFIG)  # every label fits its scan


@pytest.mark.parametrize("layout", TREES)
def test_every_image_of_a_layout_is_a_scan_a_label_or_told_of(tmp_path: Path, layout: str) -> None:
    for draw in TREES[layout]:
        (tmp_path / draw.__name__).mkdir()
        root = make(tmp_path / draw.__name__, draw)
        discovery = found(root)
        used = {path for one in discovery.sources for path in one.files}
        used |= {path for one in discovery.sources for label in one.labels for path in label.files}
        told = sum(int(note.split()[0]) for note in discovery.notes if LEFT_OUT.match(note))
        files = [path for path in root.rglob("*") if path.name.endswith((".nii", ".nii.gz", ".mgz", ".mha"))]
        assert len(files) == len(used) + told


def bids_files(root: Path, count: int) -> None:
    for k in range(count):
        raw = root / f"sub-{k:03d}" / "anat"
        derived = root / "derivatives" / "labels" / f"sub-{k:03d}" / "anat"
        raw.mkdir(parents=True)
        derived.mkdir(parents=True)
        for name in ("T1w", "T2w"):
            (raw / f"sub-{k:03d}_{name}.nii.gz").touch()
            (derived / f"sub-{k:03d}_{name}_label-SC_mask.nii.gz").touch()
            (derived / f"sub-{k:03d}_{name}_dseg.nii.gz").touch()


def mask_files(root: Path, count: int) -> None:
    for k in range(count):
        folder = root / f"s{k:04d}"
        (folder / "segmentations").mkdir(parents=True)
        (folder / "ct.nii.gz").touch()
        for name in ("liver", "spleen", "aorta"):
            (folder / "segmentations" / f"{name}.nii.gz").touch()


def channel_files(root: Path, count: int) -> None:
    root.mkdir()
    for k in range(count):
        for name in ("t1", "t2", "flair", "seg"):
            (root / f"p{k:03d}_{name}.nii.gz").touch()


@pytest.mark.parametrize("draw", [bids_files, mask_files, channel_files])
def test_four_times_as_many_cases_are_about_four_times_the_work(
    tmp_path: Path, draw: Callable[[Path, int], None]
) -> None:
    def calls(count: int) -> int:
        root = tmp_path / str(count)
        draw(root, count)
        number = 0

        def counted(*_: object) -> None:
            nonlocal number
            number += 1

        sys.setprofile(counted)
        try:
            found(root)
        finally:
            sys.setprofile(None)
        return number

    assert calls(120) < 5 * calls(30)


def test_data_sets_of_several_layouts_may_lie_in_one_folder(tmp_path: Path) -> None:
    for draw in EXPECTED:
        (tmp_path / draw.__name__).mkdir()
        draw(tmp_path / draw.__name__)
    discovery = found(tmp_path)
    assert len(discovery.sources) == sum(map(len, EXPECTED.values()))
    assert sum(note.startswith("layout: ") for note in discovery.notes) == len(TREES)
    cases = {s.scan_id: s.case for s in discovery.sources}
    assert cases["decathlon_BRATS_001_FLAIR"] == "decathlon/BRATS_001"
    assert cases["bids_sub-02_ct_sub-02_ct"] == "bids/sub-02"
    assert {s.dataset for s in discovery.sources if s.scan_id.startswith("bids")} == {"bids"}


def test_names_of_values_come_with_every_layout(tmp_path: Path) -> None:
    every = {value: name for name, value in {**ORGANS, "plate": 5}.items()}
    for draw, scan_id in (
        (drawn_trees.decathlon, "BRATS_001_t1gd"),
        (drawn_trees.bids, "sub-01_ses-1_anat_sub-01_ses-1_T1w"),
        (drawn_trees.nnunet, "Dataset002_Organs_q1_0000"),
    ):
        (tmp_path / draw.__name__).mkdir()
        discovery = found(make(tmp_path / draw.__name__, draw))
        assert read(discovery, scan_id).labels[0].value_names == every


def test_values_of_regions_are_named_by_all_regions_that_hold_them(tmp_path: Path) -> None:
    discovery = found(make(tmp_path, drawn_trees.nnunet))
    label = source(discovery, "Dataset001_Tumour_p1_0000").labels[0]
    assert label.value_names == {
        1: "whole",
        2: "whole + core (2)",
        3: "whole + core + active",
        4: "whole + core (4)",
        5: "whole + core (5)",
    }
    assert any("whole = 1, 2, 3, 4, 5; core = 2, 3, 4, 5; active = 3" in note for note in discovery.notes)


def test_each_channel_of_a_4d_file_is_a_scan_with_its_own_voxels(tmp_path: Path) -> None:
    discovery = found(make(tmp_path, drawn_trees.decathlon))
    one, other = (read(discovery, f"BRATS_001_{name}").image for name in ("FLAIR", "t1gd"))
    np.testing.assert_allclose(np.asarray(other, float) - one, 100, atol=1e-3)


@pytest.mark.parametrize("scan_id", ["s0001_ct", "s0002_mri"])
def test_masks_that_overlap_are_all_kept_voxel_for_voxel(tmp_path: Path, scan_id: str) -> None:
    raw = read(found(make(tmp_path, drawn_trees.totalsegmentator)), scan_id)
    labels = drawn().labels
    for name, value in ORGANS.items():
        np.testing.assert_array_equal(structure(raw, name), labels == value)
    above = np.indices(labels.shape)[0] > labels.shape[0] // 2
    np.testing.assert_array_equal(structure(raw, "upper_body"), above)
    assert [label.name for label in raw.labels] == ["segmentations", "segmentations_2"]
    assert raw.labels[0].array.dtype == np.uint8


def structure(raw: RawScan, name: str) -> np.ndarray:
    """The voxels of a structure in whichever map it is."""
    ((label, value),) = [
        (label, value)
        for label in raw.labels
        for value, other in (label.value_names or {}).items()
        if other == name
    ]
    return label.array == value


def test_a_structure_has_one_value_in_all_scans_of_a_data_set(tmp_path: Path) -> None:
    discovery = found(make(tmp_path, drawn_trees.totalsegmentator))
    values = [{part.name: part.value for part in one.labels[0].parts} for one in discovery.sources]
    assert values[0] == values[1] | {"spleen": 5}
    assert source(discovery, "s0001_ct").labels[0].parts[4].name == "spleen"


def test_a_file_of_several_values_among_masks_is_a_label_map_of_its_own(tmp_path: Path) -> None:
    write(tmp_path, "p/ct.nii.gz")
    write_labels(tmp_path, "p/segmentations/all parts.nii.gz")
    write_mask(tmp_path, "p/segmentations/bone.nii.gz", drawn().labels == 4)
    raw = read(found(tmp_path), "p_ct")
    assert [label.name for label in raw.labels] == ["segmentations", "all-parts"]
    np.testing.assert_array_equal(raw.labels[1].array, drawn().labels)
    assert "mask all parts has several values: it is a label map of its own" in raw.notes


def test_many_masks_take_no_more_memory_than_few(tmp_path: Path) -> None:
    shape = (60, 80, 80)
    scan = drawn(shape)
    write(tmp_path, "ct.nii.gz", shape=shape)

    def peak(count: int) -> int:
        for k in range(count):
            scan.replace(labels=(np.indices(shape)[0] == k).astype(np.uint8)).write_labels(
                tmp_path / "segmentations" / f"plane{k}.nii.gz"
            )
        (one,) = found(tmp_path).sources
        tracemalloc.start()
        read_source(one, CONFIG)
        highest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return highest

    assert peak(30) < peak(3) + np.prod(shape)


# --- what changes a scan, and what does not


def test_the_digest_follows_every_mask_its_name_and_its_value(tmp_path: Path) -> None:
    root = make(tmp_path, drawn_trees.totalsegmentator)
    before = source(found(root), "s0002_mri")
    digests = {source_digest(before)}
    states = [source_stat(before)]
    write_mask(root, "s0002/segmentations/lung.nii.gz", drawn().labels == 5)
    changed = source(found(root), "s0002_mri")
    assert choices_digest(changed) == choices_digest(before)
    digests.add(source_digest(changed))
    states.append(source_stat(changed))
    (root / "s0002/segmentations/lung.nii.gz").rename(root / "s0002/segmentations/lungs.nii.gz")
    renamed = source(found(root), "s0002_mri")
    digests.add(source_digest(renamed))
    assert len(digests) == 3
    assert states[0] != states[1]
    assert choices_digest(renamed) != choices_digest(before)


def test_a_plain_folder_has_the_digests_that_it_had_before_there_were_layouts(tmp_path: Path) -> None:
    root = make(tmp_path, drawn_trees.plain)
    assert choices_digest(source(found(root), "p01")) == (
        "fdfac887186732925995a27e23fd419d2f57449017be6a06dec1893c5367b564"
    )


# --- labels of a case


def test_a_label_of_a_case_is_left_out_with_a_note_where_the_grid_differs(tmp_path: Path) -> None:
    write(tmp_path, "p/p_ct.nii.gz")
    write(tmp_path, "p/p_pet.nii.gz", shape=drawn_trees.OTHER_SHAPE)
    write_labels(tmp_path, "p/p_seg.nii.gz")
    discovery = found(tmp_path)
    assert said(discovery) == {"p_p_ct": ("ct", "", "p", ("seg",)), "p_p_pet": ("pet", "", "p", ("seg",))}
    ct, pet = read(discovery, "p_p_ct"), read(discovery, "p_p_pet")
    np.testing.assert_array_equal(ct.labels[0].array, drawn().labels)
    assert not pet.labels
    (note,) = pet.notes
    assert note.startswith(
        "label seg of the case is not used for this scan: a label must lie on its image's grid"
    )


def test_a_label_of_one_scan_on_another_grid_is_refused_as_ever(tmp_path: Path) -> None:
    write(tmp_path, "p/p_ct.nii.gz", "p/p_pet.nii.gz")
    write_labels(tmp_path, "p/p_ct_seg.nii.gz", shape=drawn_trees.OTHER_SHAPE)
    with pytest.raises(LabelMismatch, match="a label must lie on its image's grid") as caught:
        read(found(tmp_path), "p_p_ct")
    assert type(caught.value) is LabelMismatch


def test_masks_beside_channels_belong_to_each_of_them(tmp_path: Path) -> None:
    write(tmp_path, "p/ct.nii.gz")
    write(tmp_path, "p/pet.nii.gz", shape=drawn_trees.OTHER_SHAPE)
    for name in ("organ", "lung"):
        write_mask(tmp_path, f"p/masks/{name}.nii.gz", drawn().labels == ORGANS[name])
    discovery = found(tmp_path)
    assert said(discovery) == {"p_ct": ("ct", "", "p", ("masks",)), "p_pet": ("pet", "", "p", ("masks",))}
    np.testing.assert_array_equal(structure(read(discovery, "p_ct"), "lung"), drawn().labels == 3)
    pet = read(discovery, "p_pet")
    assert not pet.labels
    assert len(pet.notes) == 2


@pytest.mark.parametrize(
    ("names", "cases"),
    [
        (("a_t1.nii.gz", "a_t2.nii.gz"), {"a_t1": (None, "a"), "a_t2": (None, "a")}),  # or first, second time
        (("a_t1.nii.gz", "a_flair.nii.gz"), {"a_t1": ("mr", "a"), "a_flair": ("mr", "a")}),
        (("a_ct.nii.gz", "b_pet.nii.gz"), {"a_ct": (None, ""), "b_pet": (None, "")}),
        (("a_1.nii.gz", "a_2.nii.gz"), {"a_1": (None, ""), "a_2": (None, "")}),
        (("p/ct.nii.gz", "p/x.nii.gz"), {"p_ct": (None, ""), "p_x": (None, "")}),
        (("p/ct.nii.gz", "q/pet.nii.gz"), {"p_ct": (None, ""), "q_pet": (None, "")}),
        (("p/FDG-PET.mha", "p/CT.nrrd"), {"p_FDG-PET": ("pet", "p"), "p_CT": ("ct", "p")}),
    ],
)
def test_scans_are_a_case_only_where_their_names_differ_in_the_channel_alone(
    tmp_path: Path, names: tuple[str, ...], cases: dict[str, tuple[str | None, str]]
) -> None:
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert {s.scan_id: (s.modality, s.case) for s in found(tmp_path).sources} == cases


def test_a_single_mask_of_another_name_is_no_label_of_the_only_scan(tmp_path: Path) -> None:
    write(tmp_path, "scan1.nii.gz")
    write_labels(tmp_path, "labels/scan2.nii.gz")
    discovery = found(tmp_path)
    assert said(discovery) == {"scan1": (None, "", "", ())}
    assert any("belong to no scan, left out: labels/scan2.nii.gz" in note for note in discovery.notes)


def test_a_layout_that_is_asked_for_must_be_there(tmp_path: Path) -> None:
    root = make(tmp_path, drawn_trees.brats)
    with pytest.raises(ConfigError, match=r"nothing in the folder is of the layout bids .*sub-01_T1w"):
        found(root, "bids")
    with pytest.raises(ConfigError, match=r"layout must be one of auto, plain, nnunet, .* got 'nnu-net'"):
        found(root, "nnu-net")
    with pytest.raises(ConfigError, match="only a folder has a layout"):
        found(next(root.rglob("*.nii.gz")), "brats")
    assert LAYOUT_NAMES[:2] == ("auto", "plain")


def test_plain_pairs_by_name_alone(tmp_path: Path) -> None:
    root = make(tmp_path, drawn_trees.brats)
    discovery = found(root, "plain")
    assert {(s.modality, s.case) for s in discovery.sources} == {(None, "")}
    assert {s.scan_id for s in discovery.sources} == set(EXPECTED[drawn_trees.brats])  # ids are the same
    assert "layout: plain, 11 scans, 8 with labels" in discovery.notes
