"""Widgets for `inspect_proposals.ipynb`: pictures that take clicks, panels that also show without a kernel.

What is drawn comes from `pipeline`; here are only the controls. Every panel carries a still picture, so that
an executed notebook shows it on GitHub, in nbconvert and wherever widgets do not run.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from IPython.display import HTML, display

from pipeline.quality.scoring import ScanScore
from pipeline.quality.stored_scan import ScanLike, rows_by_origin
from pipeline.report.browsing import Filter, ladder, ladder_strip, planes_at, rows_where
from pipeline.report.montages import Point, disjoint_rows, slices_through
from pipeline.report.overview import scan_facts
from pipeline.report.packs import PackFacts, in_8_bits, pack_scan, pairs_of
from pipeline.report.scan_pages import viewer_page
from pipeline.report.slices import PLANES, Rgb, arrange_planes, beside, locate, to_png
from pipeline.report.stored import thinned

MOST_VOXELS = 1_500_000
"""Of a larger scan the volume viewer has every second or third voxel: it lies in the notebook's output."""

_CLICKS = """
function render({ model, el }) {
  el.style.cursor = "crosshair";
  el.setAttribute("role", "img");
  el.setAttribute("aria-label", model.get("alt"));
  el.addEventListener("click", (event) => {
    const box = el.parentElement.querySelector("img").getBoundingClientRect();
    const place = [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width];
    if (place.some((part) => part < 0 || part >= 1)) return;
    model.set("place", place);
    model.save_changes();
  });
}
export default { render };
"""


class Clicks(anywidget.AnyWidget):
    """Nothing to see: takes the clicks on a picture that it lies over."""

    _esm = _CLICKS
    alt = traitlets.Unicode("").tag(sync=True)
    place = traitlets.List(trait=traitlets.Float()).tag(sync=True)
    """Where the picture was last clicked: fractions of its height and width."""


class Picture(ipywidgets.Box):
    """A picture that reports clicks.

    The picture itself is a widget of ipywidgets, not of anywidget: a browser that needs more than two seconds
    to load an anywidget's script throws away all that the kernel changes in it afterwards (anywidget 0.11).
    """

    def __init__(self, alt: str) -> None:
        cell = {"grid_area": "1 / 1", "margin": "0"}
        self._image = ipywidgets.Image(format="png", layout=ipywidgets.Layout(**cell))
        self.clicks = Clicks(alt=alt, layout=ipywidgets.Layout(**cell))
        layout = ipywidgets.Layout(display="grid", overflow="hidden", margin="0 2px 2px 0")
        super().__init__([self._image, self.clicks], layout=layout)

    @property
    def png(self) -> bytes:
        """The picture."""
        png: bytes = self._image.value
        return png

    @png.setter
    def png(self, png: bytes) -> None:
        self._image.value = png


class Panel(ipywidgets.VBox):
    """Controls and pictures, with a still picture for where widgets do not run."""

    def __init__(self, children: Sequence[ipywidgets.Widget], still: Callable[[], Rgb]) -> None:
        super().__init__(children)
        self._still = still

    def _ipython_display_(self) -> None:
        """Show the widgets, and folded below them the still picture, which exporters keep."""
        png = base64.b64encode(to_png(self._still(), colors=256)).decode("ascii")
        display({**self._repr_mimebundle_(), "image/png": png}, raw=True)
        display(HTML(_folded(png)))


def _folded(png: str) -> str:
    """Return a still picture, folded, as markup; the picture is PNG in base64."""
    picture = f'<img alt="the panel as it was when the notebook ran" src="data:image/png;base64,{png}">'
    return f"<details><summary>still picture, where widgets do not run</summary>{picture}</details>"


class Explorer:
    """The viewer of `mass inspect` with one scan, in a frame: planes, rendering, proposals, labels.

    All that it needs is in the frame: it turns without a kernel, and in an exported notebook too. Below it is
    a still picture, for where scripts do not run.
    """

    def __init__(self, scan: ScanLike, score: ScanScore | None, still: Rgb, *, height: int) -> None:
        part = thinned(scan, MOST_VOXELS)
        facts = PackFacts(pairs=pairs_of(score, part.labels), facts=scan_facts(scan))
        self.page = viewer_page(scan.scan_id, pack_scan(in_8_bits(part), facts))
        self._still, self._height = still, height

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        """What IPython shows."""
        png = base64.b64encode(to_png(self._still, colors=256)).decode("ascii")
        frame = (
            f'<iframe title="volume viewer" srcdoc="{escape(self.page)}" '
            f'style="width: 100%; height: {self._height}px; border: 0"></iframe>'
        )
        return {"text/html": f"<div>{frame}{_folded(png)}</div>", "image/png": png}


def explore(
    scan: ScanLike, score: ScanScore | None, point: Point, *, label: Any = None, height: int = 620
) -> Explorer:
    """The viewer of `mass inspect` with a scan, `height` pixels high; `label` is for the still picture."""
    return Explorer(scan, score, arrange_planes(planes_at(scan, point, label=label)), height=height)


class PlaneViewer:
    """Three planes through a point that sliders and clicks move.

    `rows` are proposals to fill, `label` a label map to outline; `moved` is called when the point changed.
    """

    def __init__(
        self,
        scan: ScanLike,
        point: Point,
        *,
        label: Any = None,
        pixels: int = 380,
        moved: Callable[[], None] = lambda: None,
    ) -> None:
        self.scan, self.point, self.label, self.pixels, self.moved = scan, point, label, pixels, moved
        self.rows: list[int] = []
        self._moving = False
        self.sliders = [
            ipywidgets.IntSlider(value=p, min=0, max=n - 1, description=name, continuous_update=False)
            for p, n, name in zip(point, scan.image.shape, PLANES, strict=True)
        ]
        self.pictures = [Picture(alt=f"{plane} slice; click to move the cross") for plane in PLANES]
        for slider in self.sliders:
            slider.observe(self._slid, "value")
        for number, picture in enumerate(self.pictures):
            picture.clicks.observe(lambda change, n=number: self._clicked(n, change["new"]), "place")
        self.draw()

    @property
    def controls(self) -> list[ipywidgets.Widget]:
        """Sliders above, pictures below."""
        return [ipywidgets.HBox(self.sliders), ipywidgets.HBox(self.pictures)]

    def planes(self) -> list[Rgb]:
        """The three planes as they are now."""
        return planes_at(self.scan, self.point, rows=self.rows, label=self.label, pixels=self.pixels)

    def draw(self) -> None:
        """Draw the pictures again."""
        for picture, plane in zip(self.pictures, self.planes(), strict=True):
            picture.png = to_png(plane)

    def move(self, point: Point) -> None:
        """Move to a voxel."""
        if point == self.point:
            return
        self.point = point
        self._moving = True  # the sliders follow; their own changes are no moves
        for slider, p in zip(self.sliders, point, strict=True):
            slider.value = p
        self._moving = False
        self.moved()
        self.draw()

    def _slid(self, _: Any) -> None:
        if not self._moving:
            z, y, x = (slider.value for slider in self.sliders)
            self.move((z, y, x))

    def _clicked(self, number: int, place: Sequence[float]) -> None:
        rows, columns = (n for axis, n in enumerate(self.scan.image.shape) if axis != number)
        row, column = place[0] * rows - 0.5, place[1] * columns - 0.5
        self.move(locate(row, column, self.point, self.scan.image.shape, PLANES[number]))


def browse(scan: ScanLike, point: Point, *, label: Any = None) -> Panel:
    """A panel to look through a scan in three planes."""
    viewer = PlaneViewer(scan, point, label=label)
    return Panel(viewer.controls, lambda: arrange_planes(viewer.planes()))


def walk(scan: ScanLike, point: Point, *, steps: int = 9) -> Panel:
    """A panel of the proposals at the point clicked, from atom to organ; the slider fills one of them."""
    viewer = PlaneViewer(scan, point, pixels=300)
    strip = Picture(alt="the proposals at the point, from the smallest to the largest")
    step = ipywidgets.IntSlider(value=0, min=0, max=0, description="fill", continuous_update=False)

    def rungs() -> list[int]:
        return ladder(scan, viewer.point, steps=steps)

    def refill(_: Any = None) -> None:
        found = rungs()
        viewer.rows = [found[min(step.value, len(found) - 1)]] if found else []
        viewer.draw()

    def redraw() -> None:
        found = rungs()
        strip.png = to_png(ladder_strip(scan, viewer.point, found))
        step.max = max(len(found) - 1, 0)
        viewer.rows = [found[min(step.value, step.max)]] if found else []

    viewer.moved = redraw
    step.observe(refill, "value")
    redraw()
    step.value = step.max // 2
    refill()
    return Panel(
        [*viewer.controls, step, strip],
        lambda: beside(
            [arrange_planes(viewer.planes()), ladder_strip(scan, viewer.point, rungs())], columns=1
        ),
    )


def filtered(scan: ScanLike, point: Point) -> Panel:
    """A panel that shows the best proposals within bounds of size, source and score that do not overlap."""
    volumes = scan.table[:, 9] * float(np.prod(scan.spacing_zyx_mm)) / 1000
    low, high = float(np.log10(volumes.min())), float(np.log10(volumes.max()))
    size = ipywidgets.FloatRangeSlider(
        value=(max(low, 0.0), min(high, 2.0)) if low < 2 and high > 0 else (low, high),
        min=low, max=high, step=0.1,
        description="log10 mL", continuous_update=False,
    )  # fmt: skip
    sources = ipywidgets.SelectMultiple(
        options=scan.sources, value=scan.sources, description="source", rows=6
    )
    groups = rows_by_origin(scan)
    origin = ipywidgets.Dropdown(options=["all", *groups], description="origin")
    scores = [float(s) for s in np.quantile(scan.scores, (0, 1))]
    score = ipywidgets.FloatSlider(
        value=scores[0], min=scores[0], max=scores[1], description="score from", continuous_update=False,
        step=max((scores[1] - scores[0]) / 100, 1e-6), readout_format=".3f",
    )  # fmt: skip
    viewer = PlaneViewer(scan, point, pixels=340)
    count = ipywidgets.HTML()

    def refresh(_: Any = None) -> None:
        wanted = Filter(
            min_ml=10 ** size.value[0] - 1e-9,
            max_ml=10 ** size.value[1] + 1e-9,
            sources=set(sources.value),
            min_score=score.value - 1e-9,
        )
        rows = rows_where(scan, wanted)
        if origin.value != "all":
            rows = rows[np.isin(rows, groups[origin.value])]
        viewer.rows = disjoint_rows(slices_through(scan, viewer.point), rows)
        count.value = (
            f"{len(rows):,} of {len(scan.table):,} proposals pass; {len(viewer.rows)} of them are shown"
        )
        viewer.draw()

    viewer.moved = refresh
    controls = [size, score, sources, *([origin] if len(groups) > 1 else [])]
    for control in controls:
        control.observe(refresh, "value")
    refresh()
    return Panel(
        [ipywidgets.HBox(controls), count, *viewer.controls],
        lambda: arrange_planes(viewer.planes()),
    )
