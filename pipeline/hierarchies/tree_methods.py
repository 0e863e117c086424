"""The kinds of tree in one table, `TREE_METHODS`, and the settings of one tree, `TreeSpec`.

    regions --merge the least dissimilar pair, or watershed, or thresholds--> parents

Different criteria find different organs, so several trees are grown. A kind of tree is a row of the table; a
kind that merges pair by pair is a row and a formula.

Reads:  `RegionGraph`, `RegionSums`.
Writes: parents, int64 (M,), leaves first, children before parents, the root last and its own parent.
Bounds: at least two regions. Watersheds and component trees come from higra (Perret et al., SoftwareX 10,
        2019).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

import numba
import numpy as np
from numpy.typing import NDArray

from pipeline.hierarchies.agglomeration import (
    MEANS,
    SURFACE,
    VOXELS,
    WIDTH_SQUARED,
    Dissimilarity,
    agglomerate,
)
from pipeline.hierarchies.boundaries import NUM_LEVELS
from pipeline.hierarchies.region_graphs import RegionGraph
from pipeline.hierarchies.region_totals import RegionSums

_NAME = re.compile(
    r"(?P<partition>fine|coarse|voxels)-(?P<method>[a-z]+)"
    r"(-(?P<scale>[0-9]+(\.[0-9]+)?)mm)?(?P<balanced>-balanced)?(-window(?P<window>[0-9]))?"
)

_FRACTION = 8
"""Sums of window levels are in 1/8 level: 3 fraction bits (see `pipeline.hierarchies.boundaries`)."""

_CONTACT = 0.9
"""For `contact`: fraction by which the dissimilarity falls if the whole surface is in contact."""


@dataclass(frozen=True, kw_only=True)
class TreeSpec:
    """Settings of one tree: its partition, its method and the method's parameters.

    Raises:
        ValueError: There is no such method.
    """

    partition: Literal["fine", "coarse", "voxels"]
    """Leaves of the tree: fine or coarse supervoxels, or voxels."""
    method: str
    """Name of the method, a row of `TREE_METHODS`."""
    scale_mm: float = 0.7
    """Scale of the boundary evidence, in mm; one of the computed scales."""
    size_exponent: float = 0.1
    """contrast only: the dissimilarity is multiplied by the smaller volume to this power."""
    compactness: float = 2.0
    """compact only: weight of position relative to intensity."""
    window: int = 0
    """bright and dark only: index of the intensity window."""

    def __post_init__(self) -> None:
        """Check the method."""
        if self.method not in TREE_METHODS:
            raise ValueError(f"no method is called {self.method!r}; there are {', '.join(TREE_METHODS)}")

    @classmethod
    def parse(cls, name: str) -> TreeSpec:
        """Return the tree with this name, such as `fine-contrast-0.7mm-balanced` (see `name`).

        Raises:
            ValueError: no tree has this name.
        """
        found = _NAME.fullmatch(name)
        if not found or found["method"] not in TREE_METHODS:
            raise ValueError(
                f"no tree is called {name!r}; a name is PARTITION-METHOD[-SCALEmm][-balanced][-windowN], "
                "such as fine-contrast-0.7mm, coarse-dynamics-1.5mm, fine-compact, fine-bright-window0"
            )
        part = found.groupdict()
        spec = cls(
            partition=part["partition"],  # type: ignore[arg-type]
            method=part["method"],
            scale_mm=float(part["scale"] or cls.scale_mm),
            size_exponent=0.33 if part["balanced"] else cls.size_exponent,
            window=int(part["window"] or 0),
        )
        if spec.name != name:
            raise ValueError(f"no tree is called {name!r}; did you mean {spec.name!r}?")
        return spec

    @property
    def uses_boundary_evidence(self) -> bool:
        """Whether the method uses boundary evidence at `scale_mm`; else it uses intensity only."""
        return TREE_METHODS[self.method].name_ends == "scale"

    @property
    def name(self) -> str:
        """Name of the tree in the settings, and of its proposals' source in the store."""
        method = TREE_METHODS[self.method]
        ends = {"scale": f"-{self.scale_mm:g}mm", "window": f"-window{self.window}", "method": ""}
        balanced = "-balanced" if method.by_size and self.size_exponent > 0.2 else ""
        return f"{self.partition}-{self.method}{ends[method.name_ends]}{balanced}"


GrowParents: TypeAlias = Callable[[TreeSpec, RegionGraph, RegionSums, int], NDArray[np.int64]]
"""Returns int64 (M,) the parents of a tree; the number is the column of the graph's evidence at its scale."""


@dataclass(frozen=True, kw_only=True)
class TreeMethod:
    """A kind of tree."""

    parents: GrowParents
    name_ends: Literal["scale", "window", "method"] = "scale"
    """Last part of its trees' names: the scale of the boundary evidence, if it uses any
    (fine-contrast-0.7mm); the intensity window (fine-bright-window0); or the method itself (fine-compact)."""
    by_size: bool = False
    """Whether small regions are merged first, by `TreeSpec.size_exponent`; names may end in -balanced."""
    level_sets: bool = False
    """Whether its regions are level sets of the image."""


# Formulas: float64, the dissimilarity of two touching regions; the least is merged next. `pair`
# has the common faces, and the boundary evidence summed over them; `one` and `other` are rows of
# `agglomeration.VOXELS` and so on. They are compiled when a tree is grown.


def boundary(pair: Any, one: Any, other: Any) -> Any:
    """Mean boundary evidence over the common faces (average linkage)."""
    return pair.strength / pair.faces


def contrast(pair: Any, one: Any, other: Any) -> Any:
    """`boundary`, plus the distance of the mean intensities."""
    return pair.strength / pair.faces + np.sqrt(squared_distance(one, other))


def neck(pair: Any, one: Any, other: Any) -> Any:
    """`contrast`, times the width of the smaller region over that of the contact.

    Organs that touch at a narrow neck are merged later.
    """
    smaller = one if one[VOXELS] < other[VOXELS] else other
    value = pair.strength / pair.faces + np.sqrt(squared_distance(one, other))
    return value * np.sqrt(smaller[WIDTH_SQUARED] / pair.faces)


def contact(pair: Any, one: Any, other: Any) -> Any:
    """`boundary`, times the fraction of the smaller surface that is not in contact: dents are filled."""
    return pair.strength / pair.faces * (1.0 - _CONTACT * pair.faces / min(one[SURFACE], other[SURFACE]))


def roundness(pair: Any, one: Any, other: Any) -> Any:
    """`boundary`, times the squared surface of both together over their volume to the power of 4/3."""
    surface, volume = one[SURFACE] + other[SURFACE] - 2.0 * pair.faces, one[VOXELS] + other[VOXELS]
    return pair.strength / pair.faces * (surface * surface / volume ** (4 / 3))


def ward(pair: Any, one: Any, other: Any) -> Any:
    """Growth of the sum of squared distances from the mean features (Ward 1963)."""
    square = squared_distance(one, other)
    return square * one[VOXELS] * other[VOXELS] / (one[VOXELS] + other[VOXELS])


def piecewise(pair: Any, one: Any, other: Any) -> Any:
    """`ward` per face that disappears: the error of a piecewise constant image.

    Mumford and Shah 1989; Koepfler et al. 1994.
    """
    square = squared_distance(one, other)
    return square * one[VOXELS] * other[VOXELS] / (one[VOXELS] + other[VOXELS]) / pair.faces


@numba.njit(cache=True, nogil=True)
def squared_distance(one: Any, other: Any) -> Any:
    """Return the squared distance of the mean features of two regions."""
    square = 0.0
    for k in range(MEANS, len(one)):
        step = one[k] - other[k]
        square += step * step
    return square


def _merged_by(dissimilarity: Dissimilarity, *, with_position: bool = False) -> GrowParents:
    """Return a function that grows a tree by merging regions pair by pair.

    Args:
        dissimilarity: Formula; the pair with the least is merged next.
        with_position: Whether the position is a feature too, weighted by `TreeSpec.compactness`.
    """

    def parents(spec: TreeSpec, graph: RegionGraph, sums: RegionSums, column: int) -> NDArray[np.int64]:
        return agglomerate(
            graph.pairs,
            graph.faces,
            graph.sums[:, column],
            sums.voxels,
            _features(sums, spec.compactness if with_position else 0.0),
            dissimilarity=dissimilarity,
            size_exponent=spec.size_exponent if TREE_METHODS[spec.method].by_size else 0.0,
        )

    return parents


def _features(sums: RegionSums, compactness: float) -> NDArray[np.float64]:
    """Return (R, F) summed features: levels of each window, and positions weighted by the compactness."""
    levels = sums.levels / _FRACTION
    if compactness == 0.0:
        return levels
    means = levels / sums.voxels[:, None]
    spread = float(np.sqrt(means.var(axis=0).sum()))
    num_voxels = float(sums.voxels.sum())
    return np.concatenate([levels, sums.coordinates * (compactness * spread / np.cbrt(num_voxels))], axis=1)


def _volume_watershed(spec: TreeSpec, graph: RegionGraph, sums: RegionSums, column: int) -> NDArray[np.int64]:
    import higra

    heights = graph.lows[:, column].astype(np.float64)
    tree, _ = higra.watershed_hierarchy_by_volume(
        _higra_graph(graph), heights, sums.voxels.astype(np.float64)
    )
    return _parents(tree)


def _dynamics_watershed(
    spec: TreeSpec, graph: RegionGraph, sums: RegionSums, column: int
) -> NDArray[np.int64]:
    import higra

    heights = graph.lows[:, column].astype(np.float64)
    tree, _ = higra.watershed_hierarchy_by_dynamics(_higra_graph(graph), heights)
    return _parents(tree)


def _max_tree(spec: TreeSpec, graph: RegionGraph, sums: RegionSums, column: int) -> NDArray[np.int64]:
    import higra

    tree, _ = higra.component_tree_max_tree(_higra_graph(graph), _steps(sums, spec.window))
    return _parents(tree)


def _min_tree(spec: TreeSpec, graph: RegionGraph, sums: RegionSums, column: int) -> NDArray[np.int64]:
    import higra

    tree, _ = higra.component_tree_min_tree(_higra_graph(graph), _steps(sums, spec.window))
    return _parents(tree)


def _steps(sums: RegionSums, window: int, num_steps: int = 64) -> NDArray[np.float64]:
    """Return (R,) mean intensity of each region, in steps of a window."""
    means = sums.levels[:, window] / (_FRACTION * sums.voxels)
    return np.asarray(np.floor(means * (num_steps / NUM_LEVELS)))


def _higra_graph(graph: RegionGraph) -> object:
    import higra

    made = higra.UndirectedGraph(graph.num_regions)
    made.add_edges(graph.pairs[:, 0].astype(np.int64), graph.pairs[:, 1].astype(np.int64))
    return made


def _parents(tree: Any) -> NDArray[np.int64]:
    return np.array(tree.parents(), dtype=np.int64)  # a view would keep the whole tree in memory


TREE_METHODS = {
    "boundary": TreeMethod(parents=_merged_by(boundary)),
    "contrast": TreeMethod(parents=_merged_by(contrast), by_size=True),
    "neck": TreeMethod(parents=_merged_by(neck)),
    "contact": TreeMethod(parents=_merged_by(contact)),
    "round": TreeMethod(parents=_merged_by(roundness)),
    "piecewise": TreeMethod(parents=_merged_by(piecewise), name_ends="method"),
    "compact": TreeMethod(parents=_merged_by(ward, with_position=True), name_ends="method"),
    "volume": TreeMethod(parents=_volume_watershed),
    "dynamics": TreeMethod(parents=_dynamics_watershed),
    "bright": TreeMethod(parents=_max_tree, name_ends="window", level_sets=True),
    "dark": TreeMethod(parents=_min_tree, name_ends="window", level_sets=True),
}
"""Every kind of tree by the name of its method.

The first seven merge pair by pair, by the formula; `compact` by intensity and position. `volume` and
`dynamics` are hierarchical watersheds by that extinction value. `bright` and `dark` are the max-tree and the
min-tree of the regions' mean intensities: the connected components of every threshold."""
