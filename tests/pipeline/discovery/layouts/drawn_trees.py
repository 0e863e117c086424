"""Small data sets in every layout, drawn into a folder; `docs/make_layouts.py` makes a table of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from SimpleITK import GetImageFromArray, JoinSeries, WriteImage

from pipeline.ingest.writeback import write_image
from tests.phantom import Phantom, phantom

SHAPE = (12, 20, 22)
OTHER_SHAPE = (10, 20, 22)
ORGANS = {"organ": 1, "lesion": 2, "lung": 3, "bone": 4}
"""Names of the structures that are drawn, and their values in the phantom."""


def drawn(shape: tuple[int, int, int] = SHAPE) -> Phantom:
    """Return a phantom of a few thousand voxels that fills its field of view."""
    return phantom(shape_zyx=shape, spacing_zyx_mm=(9.0, 3.6, 4.2))


def write(root: Path, *names: str, shape: tuple[int, int, int] = SHAPE) -> None:
    """Write the phantom's image under each name; every one has other intensities."""
    scan = drawn(shape)
    for number, name in enumerate(names):
        scan.replace(image=scan.image + 10 * number).write(root / name)


def write_labels(root: Path, *names: str, shape: tuple[int, int, int] = SHAPE) -> None:
    """Write the phantom's label map, with values 1 to 5, under each name."""
    for name in names:
        drawn(shape).write_labels(root / name)


def write_mask(root: Path, name: str, inside: np.ndarray, *, value: int = 1) -> None:
    """Write a binary mask on the phantom's grid."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(path, inside.astype(np.uint8) * np.uint8(value), drawn().grid)


def write_4d(root: Path, name: str, channels: int) -> None:
    """Write a 4D file on the phantom's grid, each volume with other intensities."""
    scan = drawn()
    volumes = []
    for number in range(channels):
        volume = GetImageFromArray(scan.image + 100 * number)
        volume.SetSpacing(scan.grid.spacing_xyz_mm)
        volume.SetOrigin(scan.grid.origin_xyz_mm)
        volume.SetDirection(scan.grid.direction)
        volumes.append(volume)
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    WriteImage(JoinSeries(volumes), str(path))


def write_mgh(root: Path, name: str, array: np.ndarray) -> None:
    """Write an array (z, y, x) as a file of FreeSurfer, on the phantom's grid up to its position."""
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    affine = np.diag([*drawn().grid.spacing_xyz_mm, 1.0])
    nibabel.save(nibabel.MGHImage(array.T.astype(np.int16), affine), path)


def write_json(root: Path, name: str, value: Any) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def write_text(root: Path, name: str, lines: Iterable[str]) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def nnunet(root: Path) -> None:
    """Two data sets of nnU-Net v2: two MR channels with regions, and a CT with labels."""
    one, other = "Dataset001_Tumour", "Dataset002_Organs"
    write(root / one, *(f"imagesTr/p{k}_{c:04d}.nii.gz" for k in (1, 2) for c in (0, 1)))
    write(root / one, "imagesTs/p3_0000.nii.gz", "imagesTs/p3_0001.nii.gz")
    write_labels(root / one, "labelsTr/p1.nii.gz", "labelsTr/p2.nii.gz")
    regions = {"background": 0, "whole": [1, 2, 3, 4, 5], "core": [2, 3, 4, 5], "active": 3}
    write_json(
        root / one,
        "dataset.json",
        {
            "channel_names": {"0": "T1", "1": "FLAIR"},
            "labels": regions,
            "regions_class_order": [1, 2, 3],
            "numTraining": 2,
            "file_ending": ".nii.gz",
        },
    )
    write(root / other, "imagesTr/q1_0000.nii.gz")
    write_labels(root / other, "labelsTr/q1.nii.gz")
    names = {"background": 0, **ORGANS, "plate": 5}
    write_json(
        root / other,
        "dataset.json",
        {"channel_names": {"0": "CT"}, "labels": names, "numTraining": 1, "file_ending": ".nii.gz"},
    )


def decathlon(root: Path) -> None:
    """A task of the Decathlon: 4D files of two channels."""
    write_4d(root, "imagesTr/BRATS_001.nii.gz", 2)
    write_4d(root, "imagesTs/BRATS_002.nii.gz", 2)
    write_labels(root, "labelsTr/BRATS_001.nii.gz")
    write_json(
        root,
        "dataset.json",
        {
            "modality": {"0": "FLAIR", "1": "t1gd"},
            "labels": {
                "0": "background",
                "1": "organ",
                "2": "lesion",
                "3": "lung",
                "4": "bone",
                "5": "plate",
            },
            "numTraining": 1,
            "training": [{"image": "./imagesTr/BRATS_001.nii.gz", "label": "./labelsTr/BRATS_001.nii.gz"}],
            "test": ["./imagesTs/BRATS_002.nii.gz"],
        },
    )


def bids(root: Path) -> None:
    """Two subjects, one with two sessions; a segmentation, masks and images among the derivatives."""
    write(root, "sub-01/ses-1/anat/sub-01_ses-1_T1w.nii.gz", "sub-01/ses-1/anat/sub-01_ses-1_T2w.nii.gz")
    write(root, "sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz")
    write(root, "sub-02/anat/sub-02_FLAIR.nii.gz", "sub-02/ct/sub-02_ct.nii.gz")
    write(root, "sub-02/func/sub-02_task-rest_bold.nii.gz")
    write(root, "sub-02/anat/sub-02_run-2_part-phase_T2starw.nii.gz")
    derived = "derivatives/pipe/sub-01/ses-1/anat/sub-01_ses-1"
    write_labels(root, f"{derived}_space-orig_dseg.nii.gz")
    labels = drawn().labels
    write_mask(root, f"{derived}_T2w_label-lung_mask.nii.gz", labels == 3)
    write_mask(root, f"{derived}_T2w_label-organ_mask.nii.gz", (labels == 1) | (labels == 2))
    write_mask(root, f"{derived}_T2w_label-lesion_mask.nii.gz", labels == 2)
    write_mask(root, f"{derived}_label-GM_probseg.nii.gz", labels == 1)
    write_labels(root, f"{derived}_space-MNI152_dseg.nii.gz")
    write(root, f"{derived}_desc-preproc_T1w.nii.gz")
    rows = ["index\tname", "0\tbackground", *(f"{v}\t{n}" for n, v in ORGANS.items()), "5\tplate"]
    write_text(root, "derivatives/pipe/dseg.tsv", rows)
    write_text(
        root, "participants.tsv", ["participant_id\tage\tgroup", "sub-01\t40\tpatient", "sub-02\t50\tn/a"]
    )
    write_json(root, "dataset_description.json", {"Name": "drawn", "BIDSVersion": "1.10.0"})


def totalsegmentator(root: Path) -> None:
    """A CT and an MR with a mask for each structure; two of them overlap, one is empty."""
    labels = drawn().labels
    for case, scan in (("s0001", "ct"), ("s0002", "mri")):
        write(root, f"{case}/{scan}.nii.gz")
        for name, value in ORGANS.items():
            write_mask(root, f"{case}/segmentations/{name}.nii.gz", labels == value, value=255)
        write_mask(root, f"{case}/segmentations/upper_body.nii.gz", np.indices(SHAPE)[0] > SHAPE[0] // 2)
    write_mask(root, "s0001/segmentations/spleen.nii.gz", labels == 77)
    write_text(root, "meta.csv", ["image_id;age;split", "s0001;61;train", "s0002;40;val"])


def freesurfer(root: Path) -> None:
    """A subject with its segmentations and the images between, and one after the first steps."""
    scan = drawn()
    for name in ("bert/mri/orig", "bert/mri/nu", "bert/mri/brainmask", "bert/mri/orig/001", "ernie/mri/T1"):
        write_mgh(root, f"{name}.mgz", scan.image)
    for name in ("aseg", "aparc+aseg", "ribbon"):
        write_mgh(root, f"bert/mri/{name}.mgz", scan.labels)


def mask_folders(root: Path) -> None:
    """Masks in a folder beside each scan, in the other two ways."""
    labels = drawn().labels
    write(root, "a/p01.nii.gz", "b/images/p02.nii.gz")
    for name in ("organ", "lung"):
        write_mask(root, f"a/p01_masks/{name}.nii.gz", labels == ORGANS[name])
        write_mask(root, f"b/labels/p02/{name}.nii.gz", labels == ORGANS[name])


def brats(root: Path) -> None:
    """Cases of BraTS 2021 and 2023, and a CT, PET and MR of one patient, each on a grid of its own."""
    old, new = "BraTS2021_00002", "BraTS-GLI-00003"
    write(root, *(f"{old}/{old}_{c}.nii.gz" for c in ("t1", "t1ce", "t2", "flair")))
    write_labels(root, f"{old}/{old}_seg.nii.gz")
    for visit in ("000", "001"):
        write(root, *(f"{new}-{visit}/{new}-{visit}-{c}.nii.gz" for c in ("t1n", "t2f")))
    write_labels(root, f"{new}-000/{new}-000-seg.nii.gz")
    write(root, "STS_003/CT_image.nii.gz")
    write(root, "STS_003/PET_image.nii.gz", "STS_003/MR_T1_image.nii.gz", shape=OTHER_SHAPE)
    write_labels(root, "STS_003/CT_mask.nii.gz")
    write_labels(root, "STS_003/PET_mask.nii.gz", shape=OTHER_SHAPE)


def plain(root: Path) -> None:
    """Scans and labels that are paired by name."""
    write(root, "p01.nii.gz", "p02_ct.nii.gz", "p03.nii.gz")
    write_labels(root, "p01_seg.nii.gz")


def downloads(root: Path) -> None:
    """Files named as in LiTS, KiTS, BTCV, PROMISE12, UCSF-PDGM and COVID-19-CT-Seg."""
    scans = (
        "volume-0.nii",
        "case_00000/imaging.nii.gz",
        "img/img0001.nii.gz",
        "Case00.mha",
        "Scans/c_001.nii",
    )
    write(root, *scans, "UCSF-1_T1.nii.gz")
    write_labels(root, "segmentation-0.nii", "case_00000/segmentation.nii.gz", "label/label0001.nii.gz")
    write_labels(root, "Case00_segmentation.mha", "UCSF-1_tumor_segmentation.nii.gz", "Lung_Mask/c_001.nii")


TREES: dict[str, tuple[Callable[[Path], None], ...]] = {
    "nnunet": (nnunet,),
    "decathlon": (decathlon,),
    "bids": (bids,),
    "freesurfer": (freesurfer,),
    "totalsegmentator": (totalsegmentator, mask_folders),
    "brats": (brats,),
    "plain": (plain, downloads),
}
"""Data sets of each layout."""
