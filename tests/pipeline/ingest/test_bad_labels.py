"""Labels that do not fit their scan, or are none, have their own error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from pipeline import errors
from pipeline.discovery.sources import LabelSource
from pipeline.ingest.reading import read_source
from tests.phantom import Phantom, phantom
from tests.pipeline.ingest.bad_inputs import CONFIG, refused, source_of

pytestmark = pytest.mark.usefixtures("silent")


def label(path: Path, names: dict[int, str] | None = None) -> LabelSource:
    return LabelSource(name="label", path=path, value_names=names)


def test_a_label_of_another_shape_is_refused(scan: Phantom, good: Path) -> None:
    other = phantom(shape_zyx=(30, 60, 70)).write_labels(good.with_name("l.nii.gz"))
    assert "grid" in refused(good, errors.LabelMismatch, label(other))


@pytest.mark.parametrize("change", ["origin", "spacing", "direction"])
def test_a_label_in_another_place_is_refused(scan: Phantom, good: Path, change: str) -> None:
    other = {
        "origin": phantom(centre_xyz_mm=(21.0, -35.0, 410.0)),
        "spacing": phantom(spacing_zyx_mm=(3.0, 1.25, 1.3)),
        "direction": phantom(direction=((0.8, -0.6, 0), (0.6, 0.8, 0), (0, 0, 1))),
    }[change].write_labels(good.with_name("l.nii.gz"))
    assert "corners" in refused(good, errors.LabelMismatch, label(other))


def test_a_label_off_by_rounding_is_accepted(scan: Phantom, good: Path) -> None:
    nearly = phantom(centre_xyz_mm=(20.01, -35.0, 410.0), spacing_zyx_mm=(3.0001, 1.2, 1.3))
    path = nearly.replace(labels=scan.labels).write_labels(good.with_name("l.nii.gz"))
    raw = read_source(source_of(good, label(path)), CONFIG)
    np.testing.assert_array_equal(raw.labels[0].array, scan.labels)


def test_label_values_that_were_not_declared_are_refused(scan: Phantom, good: Path) -> None:
    path = scan.write_labels(good.with_name("l.nii.gz"))
    message = refused(good, errors.LabelMismatch, label(path, {1: "organ", 2: "lesion", 3: "lung"}))
    assert "these are not: 4, 5" in message


@pytest.mark.parametrize("values", [(0, 0.5), (0, -1), (0, 70000)])
def test_label_values_that_are_no_labels_are_refused(
    scan: Phantom, good: Path, values: tuple[float, float]
) -> None:
    array = np.where(scan.labels > 0, values[1], values[0]).astype(np.float32)
    path = scan.replace(labels=array).write_labels(good.with_name("l.nii.gz"))
    assert "whole numbers" in refused(good, errors.LabelMismatch, label(path))


def test_labels_saved_as_floats_or_above_255_are_kept(scan: Phantom, good: Path) -> None:
    array = (scan.labels.astype(np.float32)) * 100
    path = scan.replace(labels=array).write_labels(good.with_name("l.nii.gz"))
    (found,) = read_source(source_of(good, label(path)), CONFIG).labels
    assert found.array.dtype == np.uint16
    np.testing.assert_array_equal(found.array, array)


def test_a_missing_label_file_says_that_it_is_the_label(good: Path) -> None:
    assert "label file does not exist" in refused(
        good, errors.UnreadableFile, label(good.with_name("no.nii.gz"))
    )


def test_of_a_4d_label_map_the_volume_of_its_scan_is_taken(scan: Phantom, tmp_path: Path) -> None:
    def write(name: str, volumes: list[np.ndarray]) -> Path:
        images = [sitk.GetImageFromArray(volume) for volume in volumes]
        sitk.WriteImage(sitk.JoinSeries(images), str(tmp_path / name))
        return tmp_path / name

    path = write("x.nii.gz", [scan.image, scan.image + 1])
    labels = scan.labels.astype(np.uint8)
    label = LabelSource(name="gt", path=write("x_gt.nii.gz", [labels * 0, labels]), value_names=None)
    (read,) = read_source(source_of(path, label, frame=1), CONFIG).labels
    assert np.array_equal(read.array, labels)
    short = LabelSource(name="gt", path=write("y_gt.nii.gz", [labels * 0] * 2), value_names=None)
    whole = scan.write(tmp_path / "whole.nii.gz")
    assert "Save the volume" in refused(whole, errors.LabelMismatch, short)
