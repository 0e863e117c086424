"""Weights of mask sources: how often own proposals and imported masks are drawn.

A group is all of a scan's own sources together ("own"), or one imported source. Each of the K - 1 masks of a
sample first draws its group, by weight among those that have a visible mask left; within the group it is
drawn as without weights. So the shares follow the weights exactly, as long as every group has masks left.

Without weights nothing here is used, and samples are those of versions without the setting.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage import OWN, IndexEntry, imported_sources
from training.data.sampling import draw_masks
from training.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class SourceGroups:
    """The groups of one scan."""

    group_of_source: NDArray[np.int64]
    """(num_sources,) group of each source code."""
    weights: NDArray[np.float64]
    """(num_groups,) relative number of draws."""

    def may_be_drawn(self, sources: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Return whether masks of these sources have a weight above 0, (n,).

        Args:
            sources: Source code of each mask, (n,).
        """
        return np.asarray(self.weights[self.group_of_source[sources]] > 0)


def groups_of(sources: Sequence[str], imported: Sequence[str], weights: Mapping[str, float]) -> SourceGroups:
    """Return the groups of a scan.

    Args:
        sources: Name of each source code.
        imported: Names of those that were imported.
        weights: Relative number of draws by "own" or the name of an imported source; 1 for others.
    """
    names = [OWN, *imported]
    return SourceGroups(
        group_of_source=np.array([names.index(name) if name in imported else 0 for name in sources]),
        weights=np.array([weights.get(name, 1.0) for name in names]),
    )


def scans_with_weight(entries: Iterable[IndexEntry], weights: Mapping[str, float]) -> list[IndexEntry]:
    """Return the scans with a source that may be drawn: all of them without weights.

    Args:
        entries: The scans of a run.
        weights: As in `groups_of`.

    Raises:
        DataError: A weight is for a source that no scan has, or no scan is left.
    """
    entries = list(entries)
    if not weights:
        return entries
    known = sorted({name for entry in entries for name in imported_sources(entry.digests)})
    for name in weights:
        if name not in (OWN, *known):
            near = difflib.get_close_matches(name, (OWN, *known), n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise DataError(
                f"source_weights: no scan has masks imported as {name!r}{hint}. There are {OWN!r}, for all "
                f"sources of `mass prepare`, and: {', '.join(known) or 'no imported ones'}"
            )
    left = [
        entry
        for entry in entries
        if any(weights.get(name, 1.0) > 0 for name in (OWN, *imported_sources(entry.digests)))
    ]
    if not left:
        raise DataError("source_weights: every source of every scan has weight 0. Give one of them a weight")
    return left


def draw_by_group(
    voxels: NDArray[np.int64],
    sources: NDArray[np.int32],
    groups: SourceGroups,
    count: int,
    generator: np.random.Generator,
) -> NDArray[np.int64]:
    """Return up to `count` different indices into `voxels`, in random order; see the module.

    Args:
        voxels: Size of each candidate, (n,), >= 1.
        sources: Source code of each candidate, (n,); its group has a weight above 0.
        groups: The groups of the scan.
        count: Number of draws.
        generator: Source of randomness.
    """
    group = groups.group_of_source[sources]
    queues: dict[int, list[int]] = {}
    for number in np.unique(group):
        members = np.flatnonzero(group == number)
        order = draw_masks(voxels[members], sources[members], count, generator)
        queues[int(number)] = members[order][::-1].tolist()
    chosen: list[int] = []
    while queues and len(chosen) < count:
        numbers = list(queues)
        shares = np.cumsum(groups.weights[numbers])
        place = int(np.searchsorted(shares, generator.random() * shares[-1], side="right"))
        number = numbers[min(place, len(numbers) - 1)]
        chosen.append(queues[number].pop())
        if not queues[number]:
            del queues[number]
    return np.array(chosen, dtype=np.int64)
