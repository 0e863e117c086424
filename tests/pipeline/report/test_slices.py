from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.quality.intervals import proposal_mask
from pipeline.report.browsing import (
    Filter,
    deepest_voxel,
    hierarchy_sheet,
    ladder,
    ladder_strip,
    planes_at,
    rows_where,
)
from pipeline.report.montages import (
    coverage_limits,
    coverage_planes,
    disjoint_rows,
    focus_point,
    foreground,
    overview_slice,
    planes_with,
    proposal_tile,
    rows_by_size,
    size_montages,
    slices_through,
    structure_tile,
    widest_slice,
)
from pipeline.report.slices import (
    LABEL_COLOR,
    PALETTE,
    PLANES,
    PROPOSAL_COLOR,
    Frame,
    Overlay,
    Plane,
    arrange_planes,
    beside,
    captioned,
    cut,
    cut_region,
    display_window,
    draw_slice,
    gray,
    locate,
    place,
    to_png,
)
from tests.pipeline.drawn_scan import drawn_scan

PLAIN = Frame(mm_per_pixel=1.0, marks=False)


@pytest.mark.parametrize(
    ("plane", "towards", "corner"),
    [
        ("axial", (0, 1, 1), "upper left"),  # y grows to the front, x to the right
        ("coronal", (1, 0, 1), "upper left"),  # z grows to the head
        ("sagittal", (1, 1, 0), "upper left"),
        ("axial", (0, 0, 0), "lower right"),
        ("coronal", (0, 0, 0), "lower right"),
        ("sagittal", (0, 0, 0), "lower right"),
    ],
)
def test_right_front_and_head_are_where_a_radiologist_looks_for_them(
    plane: Plane, towards: tuple[int, int, int], corner: str
) -> None:
    volume = np.zeros((5, 6, 7), dtype=np.uint8)
    volume[tuple(-1 if t else 0 for t in towards)] = 1
    turned = cut(volume, plane, 0)
    row, column = np.argwhere(turned)[0]
    assert (row, column) == ((0, 0) if corner == "upper left" else (turned.shape[0] - 1, turned.shape[1] - 1))


@pytest.mark.parametrize("plane", PLANES)
def test_a_point_is_placed_where_its_voxel_is_drawn(plane: Plane) -> None:
    point = (2, 1, 5)
    volume = np.zeros((5, 6, 7))
    volume[point] = 1
    index = point[PLANES.index(plane)]
    assert place(point, volume.shape, plane) == tuple(np.argwhere(cut(volume, plane, index))[0])
    assert locate(*place(point, volume.shape, plane), (index,) * 3, volume.shape, plane) == point
    assert np.array_equal(
        cut(volume[cut_region(volume.shape, plane, index)], plane, 0), cut(volume, plane, index)
    )


def test_pixels_are_square_in_mm() -> None:
    scan = drawn_scan()  # (18, 40, 48) voxels of (3, 1.5, 1.5) mm
    axial, coronal, sagittal = planes_with(scan, (9, 20, 24), [], pixels=72)
    assert axial.shape == (60, 72, 3)
    assert coronal.shape == (54, 72, 3)
    assert sagittal.shape == (54, 60, 3)


def test_an_overlay_colours_its_mask_and_nothing_else() -> None:
    levels = np.full((20, 20), 100, dtype=np.uint8)
    mask = np.zeros((20, 20), dtype=bool)
    mask[5:15, 5:15] = True
    overlay = Overlay(mask=mask, color=(200, 0, 0), fill=0.5, outline=1)
    drawn = draw_slice(levels, "axial", (1.0, 1.0), frame=PLAIN, overlays=[overlay])
    assert (drawn[~mask] == 100).all()
    assert (drawn[6:14, 6:14] == (150, 50, 50)).all()
    assert (drawn[5, 5:15] == (200, 0, 0)).all()


def test_a_one_voxel_mask_stays_visible_when_enlarged() -> None:
    mask = np.zeros((9, 9), dtype=bool)
    mask[4, 4] = True
    frame = Frame(mm_per_pixel=0.25, marks=False)
    drawn = draw_slice(
        np.zeros((9, 9), np.uint8),
        "axial",
        (1.0, 1.0),
        frame=frame,
        overlays=[Overlay(mask=mask, color=PALETTE[0])],
    )
    assert (drawn == PALETTE[0]).all(axis=-1).sum() >= 4


def test_pet_is_shown_black_on_white_and_ct_in_the_soft_tissue_window() -> None:
    scan = drawn_scan()
    window = display_window(scan)
    assert (window.low, window.high, window.inverted) == (-160, 240, False)
    assert gray(np.array([[-400, 40, 900]]), scan, window).tolist() == [[0, 128, 255]]
    pet = replace(scan, modality="pet")
    assert display_window(pet).inverted
    assert gray(scan.image.max(keepdims=True)[0], pet, display_window(pet)).max() == 0


def test_ct_that_is_not_in_hounsfield_units_gets_a_window_of_its_own() -> None:
    scan = replace(drawn_scan(), attributes={"intensity": {"unit": "arbitrary"}}, scale=10.0)
    assert display_window(scan).high != 240


def test_marks_and_a_cross_are_drawn() -> None:
    levels = np.full((100, 100), 90, dtype=np.uint8)
    plain = draw_slice(levels, "axial", (1.0, 1.0), frame=PLAIN)
    marked = draw_slice(levels, "axial", (1.0, 1.0), frame=Frame(mm_per_pixel=1.0, cross=(50, 50)))
    assert (plain == 90).all()
    assert (marked[:20, 40:60] != 90).any()  # A
    assert (marked[88:, 60:] == 255).any()  # scale bar
    assert (marked[50, 54:60] == 255).all()  # cross


def test_pictures_are_arranged_with_the_least_waste() -> None:
    flat = [np.zeros(s, np.uint8) for s in ((100, 120, 3), (30, 120, 3), (30, 100, 3))]
    cube = [np.zeros((100, 100, 3), np.uint8)] * 3
    assert arrange_planes(flat).shape == (100, 246, 3)
    assert arrange_planes(cube).shape == (100, 312, 3)
    assert beside(cube, columns=2).shape == (206, 206, 3)
    assert captioned(cube[0], "one\ntwo").shape[0] == 138


@pytest.mark.parametrize("colors", [None, 64])
def test_png_bytes_decode_to_the_picture(colors: int | None) -> None:
    picture = planes_with(drawn_scan(), (9, 20, 24), [0, 9], pixels=90)[0]
    decoded = np.asarray(Image.open(io.BytesIO(to_png(picture, colors=colors))).convert("RGB"))
    assert decoded.shape == picture.shape
    assert np.abs(decoded.astype(int) - picture).mean() <= (0 if colors is None else 6)


def test_the_body_includes_the_air_it_encloses() -> None:
    scan = drawn_scan()
    image = scan.image.copy()
    image[9, 20:24, 18:22] = -950
    body = foreground(replace(scan, image=image))
    assert body[9, 20:24, 18:22].all()
    assert not body[:, 0, :].any()
    assert all(0 < p < n - 1 for p, n in zip(focus_point(scan, body), body.shape, strict=True))


def test_proposals_shown_together_hardly_overlap() -> None:
    scan = drawn_scan()
    slices = slices_through(scan, (9, 21, 22))
    rows = disjoint_rows(slices, range(len(scan.table)))
    assert len(rows) > 1
    for s in slices:
        painted = np.sum([s.mask(row) for row in rows], axis=0)
        assert np.mean(painted[painted > 0] > 1) < 0.1
        index = PLANES.index(s.plane)
        whole = proposal_mask(scan, rows[0])
        assert np.array_equal(s.mask(rows[0]), cut(whole, s.plane, (9, 21, 22)[index]))


def test_every_proposal_belongs_to_one_size_class() -> None:
    scan = drawn_scan()
    groups = rows_by_size(scan)
    assert sorted(np.concatenate(list(groups.values()))) == list(range(len(scan.table)))
    assert list(size_montages(scan, (9, 20, 24), pixels=60)) == list(groups)


def test_the_widest_slice_is_axial_unless_another_is_clearly_wider() -> None:
    mask = np.zeros((10, 10, 10), dtype=bool)
    mask[2:8, 3:5, 3:9] = True
    assert widest_slice(mask, (1.0, 1.0, 1.0)) == ("coronal", 3)
    mask[5, 2:8, 2:9] = True
    assert widest_slice(mask, (1.0, 1.0, 1.0)) == ("axial", 5)


def test_a_structure_is_outlined_and_its_proposal_filled() -> None:
    scan = drawn_scan()
    label = scan.labels[0].array
    tile = structure_tile(scan, label, 1, len(scan.table) - 1, pixels=200)
    assert (tile == LABEL_COLOR).all(axis=-1).sum() > 100
    blue = tile[:, :, 2].astype(int) - tile[:, :, 0] > 30
    assert blue.sum() > 1000
    missed = structure_tile(scan, label, 2, -1, pixels=200)
    assert not (missed == PROPOSAL_COLOR).all(axis=-1).any()


def test_tiles_and_heat_maps_have_the_size_asked_for() -> None:
    scan = drawn_scan()
    assert proposal_tile(scan, 20, pixels=120).shape == (120, 120, 3)
    assert max(overview_slice(scan, (9, 20, 24), pixels=100).shape) == 100
    cover = np.zeros(scan.image.shape, dtype=np.int32)
    cover[9, 20, 24], cover[9, 20, 10] = 7, 1
    assert coverage_limits(cover) == (1, 6)
    axial = coverage_planes(scan, cover, (9, 20, 24), pixels=200)[0]
    assert ((axial[:, :, 0].astype(int) - axial[:, :, 2]) > 80).any()  # the most covered voxel is yellow


def test_a_ladder_climbs_from_small_to_large_around_its_point() -> None:
    scan = drawn_scan()
    point = (9, 20, 30)
    rows = ladder(scan, point, steps=4)
    assert len(rows) == 4
    assert all(proposal_mask(scan, row)[point] for row in rows)
    assert (np.diff(scan.table[rows, 9]) > 0).all()
    strip = ladder_strip(scan, point, rows, plane="coronal", pixels=80)
    assert strip.shape[1] >= 5 * 80
    labelled = planes_at(scan, point, rows=rows, label=scan.labels[0].array, pixels=100)
    plain = planes_at(scan, point, rows=rows, pixels=100)
    assert len(labelled) == len(plain) == 3
    assert all((one != other).any() for one, other in zip(labelled, plain, strict=True))
    many = ladder(scan, point, steps=1000)
    assert set(rows) < set(many)
    assert many == sorted(many, key=lambda row: int(scan.table[row, 9]))
    assert [row for row in range(len(scan.table)) if proposal_mask(scan, row)[point]] == sorted(many)


def test_a_filter_keeps_what_meets_every_bound_best_first() -> None:
    scan = drawn_scan()
    rows = rows_where(scan, Filter(min_ml=1.0, max_ml=20.0, sources={"linkage"}, min_score=0.2))
    volumes = scan.table[rows, 9] * 3 * 1.5 * 1.5 / 1000
    assert rows.size
    assert (np.diff(rows) > 0).all()
    assert ((volumes >= 1) & (volumes <= 20)).all()
    assert (scan.table[rows, 10] == 0).all()
    assert (scan.scores[rows] >= 0.2).all()
    assert len(rows_where(scan, Filter())) == len(scan.table)


def test_the_sheet_has_a_column_for_each_size_class_and_the_labels() -> None:
    scan = drawn_scan()
    with_labels = hierarchy_sheet(scan, (9, 20, 24), pixels=60, label=scan.labels[0].array)
    without = hierarchy_sheet(scan, (9, 20, 24), pixels=60)
    columns = 2 + len(rows_by_size(scan))
    assert with_labels.shape[1] > without.shape[1] >= columns * 60


def test_labelled_slices_are_preferred() -> None:
    scan = drawn_scan()
    z, y, _ = focus_point(scan, foreground(scan))
    assert set(np.unique(scan.labels[0].array[z])) == {0, 1, 2}
    assert set(np.unique(scan.labels[0].array[:, y])) == {0, 1, 2}
    bare = replace(scan, labels=())
    assert all(
        0 < p < n - 1 for p, n in zip(focus_point(bare, foreground(bare)), scan.image.shape, strict=True)
    )


def test_the_deepest_voxel_lies_in_the_middle_of_a_ball_and_inside_a_ring() -> None:
    z, y, x = np.indices((21, 31, 31)) - np.array([10, 12, 18])[:, None, None, None]
    distance = np.sqrt(z**2 + y**2 + x**2)
    assert deepest_voxel(distance < 8) == (10, 12, 18)
    ring = (distance < 8) & (distance > 4)
    assert ring[deepest_voxel(ring)]
    with pytest.raises(ValueError, match="empty"):
        deepest_voxel(ring & ~ring)


def test_colours_of_coverage_have_two_ends_where_nothing_is_covered() -> None:
    assert coverage_limits(np.zeros((2, 2, 2), np.int32)) == (1, 2)
    assert coverage_limits(np.full((2, 2, 2), 5, np.int32))[0] == 5
