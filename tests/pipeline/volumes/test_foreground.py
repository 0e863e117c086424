from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import ndimage

from pipeline.volumes.foreground import body_mask
from tests.phantom import Phantom, phantom

SHAPE, SPACING = (36, 40, 40), (3.0, 1.7, 1.9)


def patient(**changes: str) -> Phantom:
    return phantom(shape_zyx=SHAPE, spacing_zyx_mm=SPACING, **changes)  # type: ignore[arg-type]


def body_of(scan: Phantom) -> NDArray[np.bool_]:
    """As proposals look at it: a threshold in CT, none elsewhere."""
    ct = scan.modality == "ct"
    most = float(scan.image.min() + 0.1 * np.ptp(scan.image.astype(float)))
    return body_mask(scan.image, SPACING, threshold=-500.0 if ct else None, most=most)


def ellipsoid(share: float = 1.0) -> NDArray[np.bool_]:
    """The phantom's body as it was drawn, the lungs in it included, or one of that share of its size."""
    z, y, x = (np.indices(SHAPE).T - (np.array(SHAPE) - 1) / 2).T * np.reshape(SPACING, (3, 1, 1, 1))
    return np.asarray((x / 34) ** 2 + (y / 27) ** 2 + (z / 48) ** 2 <= share**2)


@pytest.mark.parametrize("modality", ["ct", "mr"])
def test_the_body_is_covered_with_a_rim_of_a_few_millimetres(modality: str) -> None:
    mask, body = body_of(patient(modality=modality)), ellipsoid()
    assert mask.shape == SHAPE
    assert mask.dtype == np.bool_
    assert (mask & body).sum() > 0.97 * body.sum()  # where the phantom's lung comes near the skin it is open
    distance = ndimage.distance_transform_edt(~body, sampling=SPACING)
    assert distance[mask].max() < 10
    assert 1 < distance[mask & ~body].mean() < 6


def test_air_that_the_body_encloses_counts_as_body() -> None:
    scan = patient()
    image = np.where(ellipsoid(0.7), -850, np.where(ellipsoid(), 40, -1000))
    assert body_of(scan.replace(image=image))[ellipsoid(0.7)].all()


def test_a_table_and_the_air_around_do_not() -> None:
    scan = patient()
    image = scan.image.copy()
    image[:, -2:, 8:-8] = 300  # apart from the body by a few voxels, and thin
    mask = body_of(scan.replace(image=image))
    assert not mask[:, -1].any()
    assert not mask[0].all()


def test_dark_tissue_stays_body_where_one_organ_is_much_brighter() -> None:
    body = ellipsoid()
    image = np.where(body, 100, 0)
    image[16:20, 18:22, 18:22] = 4000
    assert body_mask(image, SPACING, threshold=None, most=80.0)[body].mean() > 0.99


def test_what_fills_the_scan_is_body_but_for_its_corners() -> None:
    mask = body_mask(np.full(SHAPE, 50), SPACING, threshold=0.0, most=0.0)
    assert mask[2:-2].all()
    assert mask.mean() > 0.999
