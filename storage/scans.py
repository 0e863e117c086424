"""One committed scan, read lazily: a region of the image, any K masks of it as words, labels, proposals.

*Reads* the scan's folder through its COMMIT.json; every byte it returns was checked (sha256 for metadata,
crc32c and size for arrays). Holds paths only: it may be pickled, and kept open by the thousand.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import CorruptScan, InvalidSelection
from storage.index import Commit, IndexEntry, parse_commit
from storage.layout import (
    COMMIT_FILE,
    MAX_WORD_BITS,
    METADATA_FILE,
    atoms_name,
    chunk_name,
    label_key,
)
from storage.records import Intensity, Labels, LabelVolume, Proposals, ScanRecord
from storage.regions import Region, parse_region, region_shape
from storage.shards import ArrayReader, ScanFolder, parse_layout
from storage.words import build_lookup, covered_part, unpack_words


@dataclass(frozen=True, kw_only=True, eq=False)
class Crop:
    """What a training step needs of one region of one scan."""

    image: NDArray[np.float32]
    """(z, y, x), real units or z-scores."""
    words: NDArray[np.uint16]
    """(z, y, x): bit k says whether the voxel lies in mask k."""


class Scan:
    """A committed scan. Regions are three slices (z, y, x); None is everything."""

    def __init__(self, store: Path, entry: IndexEntry) -> None:
        self.path = store / entry.path
        self.entry = entry
        self._readers: dict[str, ArrayReader] = {}

    def __repr__(self) -> str:
        return f"Scan({self.id!r}, shape_zyx={self.shape}, num_proposals={self.entry.num_proposals})"

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "entry": self.entry, "_readers": {}}

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
        """Voxel size along z, y, x."""
        return self.entry.spacing_zyx_mm

    @property
    def modality(self) -> str:
        """Modality, as "ct", "mr", "pet"."""
        return self.entry.modality

    @property
    def dataset(self) -> str:
        """The collection the scan comes from."""
        return self.entry.dataset

    @property
    def split(self) -> str:
        """Its part of the collection."""
        return self.entry.split

    @property
    def digests(self) -> Mapping[str, str]:
        """Digest of what each stage was given."""
        return self.entry.digests

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the expert labels."""
        return self.entry.labels

    @property
    def num_layers(self) -> int:
        """Atom layers, at least 1."""
        return len(self._mass["num_orders"])

    @property
    def scale(self) -> float:
        """Real units a code step."""
        return float(self._mass["scale"])

    @property
    def offset(self) -> float:
        """Real units of code 0."""
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
        """Clip bounds and z-score statistics, real units."""
        return Intensity.from_json(self.attributes.get("intensity"), scan_id=self.id)

    def image(self, region: Sequence[slice] | None = None, *, normalize: bool = False) -> NDArray[np.float32]:
        """Return the image, float32 (z, y, x).

        Args:
            region: What to read.
            normalize: Whether to return z-scores (see `intensity`) in place of real units.
        """
        reader = self._reader("0")
        box = self._region(region)
        scale, offset = self.scale, self.offset
        if normalize:
            intensity = self.intensity
            scale, offset = scale / intensity.std, (offset - intensity.mean) / intensity.std
        image = np.empty(region_shape(box), dtype=np.float32)
        for target, part in reader.chunks(box):
            np.multiply(part, np.float32(scale), out=image[target], dtype=np.float32)
            image[target] += np.float32(offset)
        return image

    def image_codes(self, region: Sequence[slice] | None = None) -> NDArray[np.int16]:
        """Return the image as stored, int16 (z, y, x): a real value is code * scale + offset."""
        codes: NDArray[np.int16] = self._reader("0").read(self._region(region))
        return codes

    def atoms(self, layer: int = 0, region: Sequence[slice] | None = None) -> NDArray[np.uint16]:
        """Return the atom ids of a layer, uint16 (z, y, x); in layers from 1 on, 65534 is background."""
        ids: NDArray[np.uint16] = self._reader(label_key(self._layer_name(layer))).read(self._region(region))
        return ids

    def labels(self, name: str, region: Sequence[slice] | None = None) -> Labels:
        """Return an expert label map, uint8 or uint16 (z, y, x); 0 is background."""
        self._check_label(name)
        labels: Labels = self._reader(label_key(name)).read(self._region(region))
        return labels

    def label_values(self, name: str) -> dict[int, str]:
        """Return what the values of an expert label map mean."""
        self._check_label(name)
        image_label = self._metadata(f"labels/{name}")["attributes"]["ome"]["image-label"]
        return {int(item["label-value"]): str(item["name"]) for item in image_label.get("properties", ())}

    def orders(self, layer: int = 0) -> NDArray[np.uint16]:
        """Return the hierarchies over a layer's atoms, (T, A): each row its atoms in depth-first order."""
        self._layer_name(layer)
        return self._all_orders[layer]

    @cached_property
    def proposals(self) -> Proposals:
        """The proposals as columns, best first."""
        counts = self._mass["num_orders"]
        return Proposals(
            table=self._small("proposals"),
            scores=self._small("scores"),
            sources=self.sources,
            layer_of_order=np.repeat(np.arange(len(counts), dtype=np.int32), counts),
        )

    def atom_ids(self, proposal: int) -> NDArray[np.uint16]:
        """Return the atoms of a proposal, (n,), ids in the layer `proposals.layer[proposal]`."""
        table = self.proposals.table
        if not 0 <= proposal < len(table):
            raise InvalidSelection(f"scan {self.id}: proposal {proposal} is not in 0..{len(table) - 1}")
        order, start, stop = (int(value) for value in table[proposal, :3])
        return self._rows[order][start:stop]

    def words(
        self, ids: Sequence[int] | NDArray[np.integer], region: Sequence[slice] | None = None
    ) -> NDArray[np.uint16]:
        """Return up to 16 masks as one word a voxel, uint16 (z, y, x): bit k is proposal ids[k].

        Reads only the atom layers that the proposals need, and of them only the chunks that their boxes meet.
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
        box = self._region(region)
        corner = np.array([part.start for part in box] * 2)
        words = np.zeros(region_shape(box), dtype=np.uint16)
        for layer, members in runs.items():
            boxes = self.proposals.boxes[[chosen[bit] for bit, _ in members]] - corner
            reader = self._reader(label_key(self._layer_name(layer)))
            _add_words(words, reader, box, build_lookup(members), boxes)
        return words

    def masks(
        self, ids: Sequence[int] | NDArray[np.integer], region: Sequence[slice] | None = None
    ) -> NDArray[np.bool_]:
        """Return the masks of any number of proposals, bool (K, z, y, x)."""
        chosen = [int(proposal) for proposal in ids]
        box = self._region(region)
        masks = np.empty((len(chosen), *region_shape(box)), dtype=np.bool_)
        for first in range(0, len(chosen), MAX_WORD_BITS):
            some = chosen[first : first + MAX_WORD_BITS]
            masks[first : first + len(some)] = unpack_words(self.words(some, box), len(some))
        return masks

    def crop(
        self,
        ids: Sequence[int] | NDArray[np.integer],
        region: Sequence[slice] | None = None,
        *,
        normalize: bool = True,
    ) -> Crop:
        """Return the image and up to 16 masks of a region: one training read."""
        return Crop(image=self.image(region, normalize=normalize), words=self.words(ids, region))

    def record(self) -> ScanRecord:
        """Return the whole scan as it was committed, all of it read and checked again."""
        return ScanRecord(
            scan_id=self.id,
            dataset=self.dataset,
            split=self.split,
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

    def _region(self, region: Sequence[slice] | None) -> Region:
        return parse_region(region, self.shape, where=f"scan {self.id}")

    def _layer_name(self, layer: int) -> str:
        if not 0 <= layer < self.num_layers:
            raise InvalidSelection(f"scan {self.id}: atom layer {layer} is not in 0..{self.num_layers - 1}")
        return atoms_name(layer)

    def _check_label(self, name: str) -> None:
        if name not in self.label_names:
            has = ", ".join(self.label_names) or "none"
            raise InvalidSelection(f"scan {self.id}: no label {name!r}; it has {has}")

    @cached_property
    def _folder(self) -> ScanFolder:
        try:
            return ScanFolder(self.path, self.path.stat().st_ino)
        except FileNotFoundError as error:
            raise self._corrupt("its folder is missing") from error

    @cached_property
    def _commit(self) -> Commit:
        _ = self._folder  # looked at first: a scan replaced from here on is noticed
        data = self._read_file(COMMIT_FILE)
        if hashlib.sha256(data).hexdigest() != self.entry.digest:
            raise self._corrupt(
                "COMMIT.json is not the one in the index: replaced or damaged. Open the store again"
            )
        return parse_commit(data, where=f"scan {self.id}")

    @cached_property
    def _mass(self) -> Mapping[str, Any]:
        mass: Mapping[str, Any] = self._metadata("")["attributes"]["mass"]
        return mass

    @cached_property
    def _all_orders(self) -> tuple[NDArray[np.uint16], ...]:
        return tuple(self._small(f"orders/{layer}") for layer in range(self.num_layers))

    @cached_property
    def _rows(self) -> list[NDArray[np.uint16]]:
        return [row for orders in self._all_orders for row in orders]

    def _small(self, key: str) -> NDArray[Any]:
        reader = self._reader(key)
        array = reader.read(tuple(slice(0, size) for size in reader.layout.shape))
        array.flags.writeable = False  # cached: shared by all who ask
        return array

    def _reader(self, key: str) -> ArrayReader:
        if key not in self._readers:
            where = f"scan {self.id}, {key}"
            layout = parse_layout(self._checked_file(f"{key}/{METADATA_FILE}"), where=where)
            chunk = f"{key}/{chunk_name(len(layout.shape))}"
            if chunk not in self._commit.keys:
                raise self._corrupt(f"COMMIT.json lacks {chunk}")
            self._readers[key] = ArrayReader(
                self.path / key,
                layout,
                num_bytes=self._commit.keys[chunk][0],
                scan=self._folder,
                where=where,
            )
        return self._readers[key]

    def _metadata(self, key: str) -> Mapping[str, Any]:
        document: Mapping[str, Any] = json.loads(
            self._checked_file(f"{key}/{METADATA_FILE}" if key else METADATA_FILE)
        )
        return document

    def _checked_file(self, key: str) -> bytes:
        """Return a small file whose bytes are those that were committed."""
        if key not in self._commit.keys:
            raise self._corrupt(f"COMMIT.json lacks {key}")
        data = self._read_file(key)
        if hashlib.sha256(data).hexdigest() != self._commit.keys[key][1]:
            raise self._corrupt(f"{key} is not what was committed")
        return data

    def _read_file(self, key: str) -> bytes:
        try:
            return (self.path / key).read_bytes()
        except FileNotFoundError as error:
            raise self._corrupt(f"{key} is missing") from error

    def _corrupt(self, what: str) -> CorruptScan:
        return CorruptScan(f"scan {self.id}: {what}. Run `mass verify`, then prepare the scan again")


def _add_words(
    words: NDArray[np.uint16],
    reader: ArrayReader,
    box: Region,
    lookup: NDArray[np.uint16],
    boxes: NDArray[np.int32],
) -> None:
    """OR a layer's words into `words`; `boxes` (K, 6) of its masks count from the corner of `box`."""
    for target, part in reader.chunks(box, wanted=lambda target: covered_part(target, boxes) is not None):
        inside = covered_part(target, boxes)
        assert inside is not None
        words[target][inside] |= lookup[part[inside]]
