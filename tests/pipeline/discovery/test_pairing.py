"""Labels that are paired with their scans by name, as public data sets name them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, strategies as st

from pipeline.discovery.name_words import name_words
from pipeline.discovery.pairing import Pairing, pair


def paired(*names: str) -> Pairing:
    return pair([Path(name) for name in names])


def labels(pairing: Pairing) -> dict[str, list[str]]:
    """Each scan with NAME:FILE of its labels; a label that may be of another scan has a '?'."""
    return {
        str(one.image): [f"{name}:{path}{'?' if path in one.unsure else ''}" for name, path in one.labels]
        for one in pairing.scans
    }


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        pytest.param(
            ["volume-0.nii", "segmentation-0.nii", "volume-1.nii", "segmentation-1.nii"],
            {"volume-0.nii": ["seg:segmentation-0.nii"], "volume-1.nii": ["seg:segmentation-1.nii"]},
            id="the words are at the front",
        ),
        pytest.param(
            ["volume-10.nii", "labels-1.nii"], {"volume-10.nii": []}, id="other numbers are other scans"
        ),
        pytest.param(
            ["case_0/imaging.nii", "case_0/segmentation.nii", "case_1/imaging.nii"],
            {"case_0/imaging.nii": ["seg:case_0/segmentation.nii?"], "case_1/imaging.nii": []},
            id="the folder is the name",
        ),
        pytest.param(
            ["Patient_01/Patient_01.nii", "Patient_01/GT.nii"],
            {"Patient_01/Patient_01.nii": ["gt:Patient_01/GT.nii?"]},
            id="beside the only scan",
        ),
        pytest.param(
            ["p/a.nii", "p/b.nii", "p/mask.nii"], {"p/a.nii": [], "p/b.nii": []}, id="beside two scans"
        ),
        pytest.param(
            ["p/ct.nii", "p/combined_labels.nii"],
            {"p/ct.nii": ["combined_label:p/combined_labels.nii?"]},
            id="further words beside the only scan that has no name",
        ),
        pytest.param(
            ["p/scan_x.nii", "p/old_y_seg.nii"], {"p/scan_x.nii": []}, id="another name beside the only scan"
        ),
        pytest.param(
            ["c_T1.nii", "c_FLAIR.nii", "c_tumor_segmentation.nii", "c_brain_segmentation.nii"],
            {
                scan: ["brain_seg:c_brain_segmentation.nii?", "tumor_seg:c_tumor_segmentation.nii?"]
                for scan in ("c_FLAIR.nii", "c_T1.nii")
            },
            id="of all channels",
        ),
        pytest.param(
            ["c_1_IMG_CT.nrrd", "c_1_OAR_Brain.seg.nrrd", "c_10_IMG_CT.nrrd"],
            {"c_1_IMG_CT.nrrd": ["oar_brain_seg:c_1_OAR_Brain.seg.nrrd?"], "c_10_IMG_CT.nrrd": []},
            id="structures",
        ),
        pytest.param(
            ["t2.nii", "adc.nii", "t2_tumor_reader1.nii", "adc_tumor_reader1.nii", "p_lesion.nii"],
            {
                "t2.nii": ["tumor_reader1:t2_tumor_reader1.nii?"],
                "adc.nii": ["tumor_reader1:adc_tumor_reader1.nii?"],
                "p_lesion.nii": [],
            },
            id="weaker words count beside their scan only",
        ),
        pytest.param(
            ["Training/img/img0001.nii", "Training/label/label0001.nii", "Testing/img/img0002.nii"],
            {
                "Training/img/img0001.nii": ["label:Training/label/label0001.nii?"],
                "Testing/img/img0002.nii": [],
            },
            id="folders with other names",
        ),
        pytest.param(
            ["TrainingImg/t_001_0000.nii", "TrainingMask/t_001.nii"],
            {"TrainingImg/t_001_0000.nii": ["training_mask:TrainingMask/t_001.nii?"]},
            id="a folder that ends with a word for labels",
        ),
        pytest.param(
            ["CT-Seg_20cases/c_1.nii", "Lung_Mask/c_1.nii", "Infection_Mask/c_1.nii"],
            {
                "CT-Seg_20cases/c_1.nii": [
                    "infection_mask:Infection_Mask/c_1.nii?",
                    "lung_mask:Lung_Mask/c_1.nii?",
                ]
            },
            id="two such folders",
        ),
        pytest.param(
            ["HaN-Seg/a.nii", "HaN-Seg/b.nii"],
            {"HaN-Seg/a.nii": [], "HaN-Seg/b.nii": []},
            id="a data set that is called so",
        ),
        pytest.param(
            ["imagesTr/C-001__CT.nii", "imagesTr/C-001__PT.nii", "labelsTr/C-001.nii"],
            {f"imagesTr/C-001__{c}.nii": ["label:labelsTr/C-001.nii?"] for c in ("CT", "PT")},
            id="channels in words",
        ),
        pytest.param(
            ["imagesVa/a.nii", "labelsVa/a.nii", "imagesVal/b.nii", "labelsVal/b.nii"],
            {"imagesVa/a.nii": ["label:labelsVa/a.nii"], "imagesVal/b.nii": ["label:labelsVal/b.nii"]},
            id="validation",
        ),
        pytest.param(
            ["s1/scans/p_1_flair_pp.nii", "s1/masks/p_1_mask1.nii", "s1/masks/p_1_mask2.nii"],
            {
                "s1/scans/p_1_flair_pp.nii": [
                    "label:s1/masks/p_1_mask1.nii?",
                    "label-2:s1/masks/p_1_mask2.nii?",
                ]
            },
            id="two raters",
        ),
        pytest.param(
            ["a/x_1.nii", "b/x_1.nii", "a/masks/x_1_mask.nii"],
            {"a/x_1.nii": ["label:a/masks/x_1_mask.nii?"], "b/x_1.nii": []},
            id="the nearest folder",
        ),
        pytest.param(
            ["ct/PANCREAS_0001.nii", "ct/PANCREAS_0002.nii", "lab/label0001.nii"],
            {"ct/PANCREAS_0001.nii": ["label:lab/label0001.nii?"], "ct/PANCREAS_0002.nii": []},
            id="the same number",
        ),
        pytest.param(
            ["ct/A_0001.nii", "mr/B_0001.nii", "lab/label0001.nii"],
            {"ct/A_0001.nii": [], "mr/B_0001.nii": []},
            id="the same number twice",
        ),
        pytest.param(
            ["Thorax (2).nii", "Thorax (2) mask.nii"],
            {"Thorax (2).nii": ["mask:Thorax (2) mask.nii"]},
            id="blanks",
        ),
    ],
)
def test_labels_find_their_scans_as_public_data_sets_name_them(
    names: list[str], expected: dict[str, list[str]]
) -> None:
    assert labels(paired(*names)) == expected


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("label0001", ("label", "0001")),
        ("ManualSegmentation_1", ("manual", "segmentation", "1")),
        ("SegTHOR_01", ("segthor", "01")),
        ("segment1", ("segment1",)),
        ("頭部_seg", ("頭部", "seg")),
    ],
)
def test_a_name_is_cut_where_a_word_ends(name: str, words: tuple[str, ...]) -> None:
    assert name_words(name) == words


_PARTS = st.sampled_from(["p1", "p2", "t1", "ct", "seg", "mask", "lesion", "image", "0001", "x"])
_FOLDERS = st.sampled_from(["", "images/", "labels/", "Lung_Mask/", "a/", "a/instances/"])


@given(st.lists(st.tuples(_FOLDERS, st.lists(_PARTS, min_size=1, max_size=3)), max_size=12))
def test_every_file_is_a_scan_a_label_or_told_of_and_the_order_does_not_matter(
    files: list[tuple[str, list[str]]],
) -> None:
    paths = sorted({Path(folder + "_".join(parts) + ".nii") for folder, parts in files})
    found = pair(paths)
    scans = {one.image for one in found.scans}
    held = {path for one in found.scans for _, path in one.labels}
    assert not scans & held
    assert scans | held | set(found.orphans) == set(paths)
    assert all(len({name for name, _ in one.labels}) == len(one.labels) for one in found.scans)
    assert pair(paths[::-1]) == found
