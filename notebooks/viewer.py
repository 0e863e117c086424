"""Widgets for `inspect_proposals.ipynb`: pictures that take clicks, panels that also show without a kernel.

What is drawn comes from `pipeline`; here are only the controls. Every panel carries a still picture, so that
an executed notebook shows it on GitHub, in nbconvert and wherever widgets do not run.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from typing import Any

import anywidget
import ipywidgets
import numpy as np
import traitlets
from IPython.display import HTML, display

from pipeline.quality.stored_scan import ScanLike, rows_by_origin
from pipeline.report.browsing import Filter, ladder, ladder_strip, planes_at, rows_where
from pipeline.report.montages import Point, disjoint_rows, slices_through
from pipeline.report.slices import PLANES, Rgb, arrange_planes, beside, locate, to_png

_CLICKABLE = """
function render({ model, el }) {
  const picture = document.createElement("img");
  picture.style.cssText = "display:block; max-width:100%; cursor:crosshair";
  picture.alt = model.get("alt");
  let shown = null;
  const show = () => {
    if (shown) URL.revokeObjectURL(shown);
    shown = URL.createObjectURL(new Blob([model.get("png")], { type: "image/png" }));
    picture.src = shown;
  };
  picture.addEventListener("click", (event) => {
    const box = picture.getBoundingClientRect();
    model.set("click", [(event.clientY - box.top) / box.height, (event.clientX - box.left) / box.width]);
    model.save_changes();
  });
  model.on("change:png", show);
  show();
  el.appendChild(picture);
}
export default { render };
"""


class Picture(anywidget.AnyWidget):
    """A picture that reports clicks."""

    _esm = _CLICKABLE
    png = traitlets.Bytes(b"").tag(sync=True)
    alt = traitlets.Unicode("").tag(sync=True)
    click = traitlets.List(trait=traitlets.Float()).tag(sync=True)
    """Where it was last clicked: fractions of its height and width."""


class Panel(ipywidgets.VBox):
    """Controls and pictures, with a still picture for where widgets do not run."""

    def __init__(self, children: Sequence[ipywidgets.Widget], still: Callable[[], Rgb]) -> None:
        super().__init__(children)
        self._still = still

    def _ipython_display_(self) -> None:
        """Show the widgets, and folded below them the still picture, which exporters keep."""
        png = base64.b64encode(to_png(self._still(), colors=256)).decode("ascii")
        display({**self._repr_mimebundle_(), "image/png": png}, raw=True)
        picture = f'<img alt="the panel as it was when the notebook ran" src="data:image/png;base64,{png}">'
        display(
            HTML(f"<details><summary>still picture, where widgets do not run</summary>{picture}</details>")
        )


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
            picture.observe(lambda change, n=number: self._clicked(n, change["new"]), "click")
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
