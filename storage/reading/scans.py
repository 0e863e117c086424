"""One committed scan, read lazily: regions of the image, masks of proposals as words, labels, proposals.

*Reads* the scan's folder through its COMMIT.json; every byte it returns was checked (sha256 for metadata,
crc32c and size for arrays). Holds paths only, so it can be pickled, and thousands can be open at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.access import StorePath
from storage.errors import InvalidSelection
from storage.layout import MAX_WORD_BITS, atoms_name, label_volume
from storage.reading.index import IndexEntry
from storage.reading.scan_files import ScanFiles
from storage.reading.volumes import VolumeReader
from storage.records import (
    Intensity,
    Labels,
    LabelVolume,
    Level,
    Proposals,
    Region,
    ScanRecord,
    Triple,
    add_words,
    build_lookup,
    coarse_boxes,
    coarse_shape,
    count_voxels,
    make_level,
    parse_region,
    plan_levels,
    region_shape,
    unpack_orders,
    unpack_words,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """Image and masks of one region of a scan, for a training step."""

    image: NDArray[np.float32]
    """(z, y, x), real units or z-scores."""
    words: NDArray[np.uint16]
    """(z, y, x): bit k says whether the voxel is in mask k."""


class Scan:
    """A committed scan. Regions are three slices (z, y, x); None means everything."""

    def __init__(self, store: StorePath, entry: IndexEntry) -> None:
        self.path = store / entry.path
        self.entry = entry
        self._files = ScanFiles(self.path, entry)

    def __repr__(self) -> str:
        return f"Scan({self.id!r}, shape_zyx={self.shape}, num_proposals={self.entry.num_proposals})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "entry": self.entry, "_files": self._files}

    @property
    def id(self) -> str:
        """The scan's id."""
        return self.entry.scan_id

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels along z, y, x."""
        return self.entry.shape_zyx

    @property
    def spacing_zyx_mm(self) -> tuple[float, float, float]:
        """Voxel size along z, y, x, in mm."""
        return self.entry.spacing_zyx_mm

    @property
    def modality(self) -> str:
        """Modality, such as "ct", "mr", "pet"."""
        return self.entry.modality

    @property
    def dataset(self) -> str:
        """Name of its data set."""
        return self.entry.dataset

    @property
    def split(self) -> str:
        """Its part of the data set, such as "train"."""
        return self.entry.split

    @property
    def case(self) -> str:
        """Patient or study that it is of; empty if it is a case of its own."""
        return self.entry.case

    @property
    def digests(self) -> Mapping[str, str]:
        """Digest of the inputs of each stage."""
        return self.entry.digests

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the expert labels."""
        return self.entry.labels

    @property
    def num_layers(self) -> int:
        """Number of atom layers, at least 1."""
        return len(self._mass["num_orders"])

    @property
    def scale(self) -> float:
        """Real units per code."""
        return float(self._mass["scale"])

    @property
    def offset(self) -> float:
        """Real value of code 0."""
        return float(self._mass["offset"])

    @property
    def sources(self) -> tuple[str, ...]:
        """Name of each `source` code of the proposals."""
        return tuple(self._mass["sources"])

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Provenance, geometry and intensity, as they were committed."""
        attributes: Mapping[str, Any] = self._mass["attributes"]
        return attributes

    @property
    def intensity(self) -> Intensity:
        """Clip bounds and z-score statistics, in real units."""
        return Intensity.from_json(self.attributes.get("intensity"), scan_id=self.id)

    @cached_property
    def levels(self) -> tuple[Level, ...]:
        """The scan's levels, finest first: each halves the axes that are still longer than a window."""
        return tuple(
            make_level(self.shape, self.spacing_zyx_mm, factors, index)
            for index, factors in enumerate(self._plan)
        )

    @property
    def num_levels(self) -> int:
        """Number of levels of the scan, at least 1."""
        return len(self._plan)

    def level(self, level: int | Level) -> Level:
        """Return a level of the scan by its index; a `Level` of this scan is returned unchanged.

        Raises:
            InvalidSelection: There is no such level, or it belongs to another scan.
        """
        if isinstance(level, Level):
            if level.shape_zyx != coarse_shape(self.shape, level.factors_zyx):
                raise InvalidSelection(
                    f"scan {self.id}: a level of shape {level.shape_zyx} with factors {level.factors_zyx} is "
                    f"of another scan, this one has {self.shape} voxels"
                )
            return level
        if not 0 <= level < self.num_levels:
            raise InvalidSelection(
                f"scan {self.id}: level {level} is not in 0..{self.num_levels - 1}; level_for() returns one "
                "that fits a smaller window"
            )
        return self.levels[level]

    def level_for(self, window_zyx: Sequence[int]) -> Level:
        """Return the finest level at which the whole scan fits into a window.

        It is one of the scan's levels, or one that is computed from them when it is read.

        Args:
            window_zyx: The most voxels along z, y, x.
        """
        factors = plan_levels(self.shape, window_zyx)[-1]
        if factors in self._plan:
            return self.levels[self._plan.index(factors)]
        return make_level(self.shape, self.spacing_zyx_mm, factors, None)

    def num_atoms(self, layer: int = 0) -> int:
        """Return the number of atoms A of a layer; ids are 0..A-1."""
        self._layer_path(layer)
        if self.entry.format_version == 1:
            return self._files.array(f"orders/{layer}").layout.shape[1]
        return self._files.array(f"segments/{layer}").layout.shape[0]

    def image(
        self, region: Sequence[slice] | None = None, *, level: int | Level = 0, normalize: bool = False
    ) -> NDArray[np.float32]:
        """Return the image, float32 (z, y, x).

        Args:
            region: Box to read, in voxels of the level.
            level: Level to read.
            normalize: Whether to return z-scores (see `intensity`) instead of real units.
        """
        level = self.level(level)
        box = self._region(region, level)
        scale, offset = self.scale, self.offset
        if normalize:
            intensity = self.intensity
            scale, offset = scale / intensity.std, (offset - intensity.mean) / intensity.std
        image = np.empty(region_shape(box), dtype=np.float32)
        for target, part in self._volumes.parts("", box, level.factors_zyx):
            np.multiply(part, np.float32(scale), out=image[target], dtype=np.float32)
            image[target] += np.float32(offset)
        return image

    def image_codes(
        self, region: Sequence[slice] | None = None, *, level: int | Level = 0
    ) -> NDArray[np.int16]:
        """Return the image as stored, int16 (z, y, x); real value = code * scale + offset."""
        codes: NDArray[np.int16] = self._volume("", region, level)
        return codes

    def atoms(
        self, layer: int = 0, region: Sequence[slice] | None = None, *, level: int | Level = 0
    ) -> NDArray[np.uint16]:
        """Return the atom ids of a layer, uint16 (z, y, x); in layers from 1 on, 65534 is background.

        At a coarser level small atoms may have no voxel.
        """
        ids: NDArray[np.uint16] = self._volume(self._layer_path(layer), region, level)
        return ids

    def labels(self, name: str, region: Sequence[slice] | None = None, *, level: int | Level = 0) -> Labels:
        """Return an expert label map, uint8 or uint16 (z, y, x); 0 is background."""
        self._check_label(name)
        labels: Labels = self._volume(label_volume(name), region, level)
        return labels

    def label_values(self, name: str) -> dict[int, str]:
        """Return {value: name} of an expert label map."""
        self._check_label(name)
        image_label = self._files.metadata(label_volume(name))["ome"]["image-label"]
        return {int(item["label-value"]): str(item["name"]) for item in image_label.get("properties", ())}

    def orders(self, layer: int = 0) -> tuple[NDArray[np.uint16], ...]:
        """Return the orders of a layer's atoms, one row per tree: the atoms in its proposals, depth first."""
        self._layer_path(layer)
        return self._all_orders[layer]

    @cached_property
    def proposals(self) -> Proposals:
        """The proposals as columns, best first."""
        counts = self._mass["num_orders"]
        return Proposals(
            table=self._files.whole("proposals"),
            scores=self._files.whole("scores"),
            sources=self.sources,
            layer_of_order=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        )

    def atom_ids(self, proposal: int) -> NDArray[np.uint16]:
        """Return the atoms of a proposal, uint16 (n,), ids in the layer `proposals.layer[proposal]`."""
        table = self.proposals.table
        if not 0 <= proposal < len(table):
            raise InvalidSelection(f"scan {self.id}: proposal {proposal} is not in 0..{len(table) - 1}")
        order, start, stop = (int(value) for value in table[proposal, :3])
        return self._rows[order][start:stop]

    @cached_property
    def level_voxels(self) -> NDArray[np.int32]:
        """Voxels of every proposal at every level, int32 (N, num_levels); column 0 is `proposals.voxels`."""
        if self.entry.format_version > 1:
            return self._files.whole("level_voxels")
        columns = [self.voxels_at(level) for level in self.levels]
        voxels = np.stack(columns, axis=1)
        voxels.flags.writeable = False
        return voxels

    def voxels_at(self, level: int | Level) -> NDArray[np.int32]:
        """Return the number of voxels of every proposal at a level, int32 (N,); 0 if it is not visible."""
        level = self.level(level)
        if level.index == 0:
            return self.proposals.voxels
        if level.index is not None and self.entry.format_version > 1:
            column: NDArray[np.int32] = self.level_voxels[:, level.index]
            return column
        counts = [
            np.bincount(self.atoms(layer, level=level).ravel(), minlength=65_536)
            for layer in range(self.num_layers)
        ]
        return count_voxels(self.proposals, self._rows, counts)

    def words(
        self,
        ids: Sequence[int] | NDArray[np.integer],
        region: Sequence[slice] | None = None,
        *,
        level: int | Level = 0,
    ) -> NDArray[np.uint16]:
        """Return up to 16 masks as one word per voxel, uint16 (z, y, x): bit k is proposal ids[k].

        Reads only the atom layers of the proposals, and only the chunks that their boxes touch.

        Args:
            ids: Rows of the proposals.
            region: Box to read, in voxels of the level.
            level: Level to read.

        Raises:
            InvalidSelection: More than 16 ids, or an id, region or level outside the scan.
        """
        chosen = [int(proposal) for proposal in ids]
        if len(chosen) > MAX_WORD_BITS:
            raise InvalidSelection(
                f"scan {self.id}: a word holds {MAX_WORD_BITS} masks, got {len(chosen)} ids"
            )
        runs: dict[int, list[tuple[int, NDArray[np.uint16]]]] = {}
        for bit, proposal in enumerate(chosen):
            atoms = self.atom_ids(proposal)
            layer = int(self.proposals.layer_of_order[self.proposals.table[proposal, 0]])
            runs.setdefault(layer, []).append((bit, atoms))
        level = self.level(level)
        box = self._region(region, level)
        corner = np.array([part.start for part in box] * 2)
        words = np.zeros(region_shape(box), dtype=np.uint16)
        for layer, members in runs.items():
            boxes = self.proposals.boxes[[chosen[bit] for bit, _ in members]]
            boxes = coarse_boxes(boxes, level.factors_zyx) - corner
            add_words(
                words,
                partial(self._volumes.parts, self._layer_path(layer), box, level.factors_zyx),
                build_lookup(members),
                boxes,
            )
        return words

    def masks(
        self,
        ids: Sequence[int] | NDArray[np.integer],
        region: Sequence[slice] | None = None,
        *,
        level: int | Level = 0,
    ) -> NDArray[np.bool_]:
        """Return the masks of any number of proposals, bool (K, z, y, x).

        Args:
            ids: Rows of the proposals.
            region: Box to read, in voxels of the level.
            level: Level to read.
        """
        chosen = [int(proposal) for proposal in ids]
        level = self.level(level)
        box = self._region(region, level)
        masks = np.empty((len(chosen), *region_shape(box)), dtype=np.bool_)
        for first in range(0, len(chosen), MAX_WORD_BITS):
            some = chosen[first : first + MAX_WORD_BITS]
            masks[first : first + len(some)] = unpack_words(self.words(some, box, level=level), len(some))
        return masks

    def crop(
        self,
        ids: Sequence[int] | NDArray[np.integer],
        region: Sequence[slice] | None = None,
        *,
        level: int | Level = 0,
        normalize: bool = True,
    ) -> Crop:
        """Return the image and up to 16 masks of a region, as one training step needs them."""
        return Crop(
            image=self.image(region, level=level, normalize=normalize),
            words=self.words(ids, region, level=level),
        )

    def record(self) -> ScanRecord:
        """Return the whole scan as it was committed; everything is read and checked again."""
        return ScanRecord(
            scan_id=self.id,
            dataset=self.dataset,
            split=self.split,
            case=self.case,
            modality=self.modality,
            image=self.image_codes(),
            scale=self.scale,
            offset=self.offset,
            spacing_zyx_mm=self.spacing_zyx_mm,
            labels=tuple(
                LabelVolume(name=name, array=self.labels(name), value_names=self.label_values(name))
                for name in self.label_names
            ),
            atoms=tuple(self.atoms(layer) for layer in range(self.num_layers)),
            orders=self._all_orders,
            table=self.proposals.table,
            scores=self.proposals.scores,
            sources=self.sources,
            attributes=self.attributes,
            digests=self.digests,
        )

    def _region(self, region: Sequence[slice] | None, level: Level) -> Region:
        return parse_region(region, level.shape_zyx, where=f"scan {self.id}")

    def _volume(self, volume: str, region: Sequence[slice] | None, level: int | Level) -> NDArray[Any]:
        level = self.level(level)
        return self._volumes.read(volume, self._region(region, level), level.factors_zyx)

    @cached_property
    def _volumes(self) -> VolumeReader:
        # Format version 1 has level 0 only.
        stored = self._plan if self.entry.format_version > 1 else self._plan[:1]
        return VolumeReader(files=self._files, plan=self._plan, stored=stored)

    @cached_property
    def _plan(self) -> tuple[Triple, ...]:
        """Factors of the levels."""
        if self.entry.format_version == 1:
            return plan_levels(self.shape)
        return tuple((int(z), int(y), int(x)) for z, y, x in self._mass["level_factors"])

    def _layer_path(self, layer: int) -> str:
        if not 0 <= layer < self.num_layers:
            raise InvalidSelection(f"scan {self.id}: atom layer {layer} is not in 0..{self.num_layers - 1}")
        return label_volume(atoms_name(layer))

    def _check_label(self, name: str) -> None:
        if name not in self.label_names:
            has = ", ".join(self.label_names) or "none"
            raise InvalidSelection(f"scan {self.id}: no label {name!r}; it has {has}")

    @cached_property
    def _mass(self) -> Mapping[str, Any]:
        mass: Mapping[str, Any] = self._files.metadata("")["mass"]
        return mass

    @cached_property
    def _all_orders(self) -> tuple[tuple[NDArray[np.uint16], ...], ...]:
        layers = range(self.num_layers)
        if self.entry.format_version == 1:
            return tuple(tuple(self._files.whole(f"orders/{layer}")) for layer in layers)
        return tuple(unpack_orders(self._files.whole(f"segments/{layer}")) for layer in layers)

    @cached_property
    def _rows(self) -> list[NDArray[np.uint16]]:
        return [row for orders in self._all_orders for row in orders]
