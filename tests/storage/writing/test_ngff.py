"""The scan's group is valid OME-NGFF 0.5, by the public validator ome-zarr-models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zarr

from storage import open_store

if TYPE_CHECKING:  # a second, which only the process that runs these tests pays
    from ome_zarr_models.v05.image import Image


def as_image(folder: Path) -> Image:
    """What the validator reads."""
    from ome_zarr_models.v05.image import Image

    return Image.from_zarr(zarr.open_group(folder, mode="r"))


@pytest.fixture
def folder(store: Path) -> Path:
    return open_store(store).scan("scan-1").path


def test_the_scan_is_a_valid_image(folder: Path) -> None:
    image = as_image(folder)
    multiscale = image.ome_attributes.multiscales[0]
    assert image.ome_attributes.version == "0.5"
    assert [(axis.name, axis.unit) for axis in multiscale.axes] == [(name, "millimeter") for name in "zyx"]
    assert multiscale.datasets[0].coordinateTransformations[0].scale == [2.0, 1.5, 1.25]


def test_coarser_levels_say_where_their_voxels_are(folder: Path) -> None:
    for group in (folder, folder / "labels" / "atoms", folder / "labels" / "organs"):
        fine, coarse = as_image(group).ome_attributes.multiscales[0].datasets
        assert (fine.path, coarse.path) == ("0", "1")
        scale, translation = coarse.coordinateTransformations
        assert scale.scale == [4.0, 1.5, 2.5]
        # The centre of a coarse voxel is the mean of those that it spans: 0 and 2 mm, 0 mm, 0 and 1.25 mm.
        assert translation.translation == [1.0, 0.0, 0.625]


def test_its_labels_are_found_from_the_image(folder: Path) -> None:
    labels = as_image(folder).labels
    assert labels is not None
    assert labels.ome_attributes.labels == ["atoms", "atoms_1", "organs"]


@pytest.mark.parametrize("name", ["atoms", "atoms_1", "organs"])
def test_each_label_is_a_valid_label_image(folder: Path, name: str) -> None:
    from ome_zarr_models.v05.image_label import ImageLabel

    label = ImageLabel.from_zarr(zarr.open_group(folder / "labels" / name, mode="r"))
    image_label = label.ome_attributes.image_label
    assert image_label.source.image == "../../"
    names = {item.label_value: item.name for item in image_label.properties or ()}
    assert names == ({1: "liver", 2: "spleen"} if name == "organs" else {})


def test_an_arrays_dimensions_are_named_after_the_axes(folder: Path) -> None:
    group = zarr.open_group(folder, mode="r")
    for key in ("0", "1", "labels/atoms/0", "labels/atoms_1/1", "labels/organs/1"):
        assert group[key].metadata.dimension_names == ("z", "y", "x")
