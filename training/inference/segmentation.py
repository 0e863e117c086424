"""From reference scans with masks to a segmentation of raw scans, each on its own grid.

    reference scans + masks --prepare, encode--> prompt
    target --prepare, sliding window--> probability of a structure --back onto the target's grid--> labels

*Reads* raw scans through a reader (`training.inference.raw_scans`). *Writes* nothing; the result has a method
to save it. Probabilities are interpolated to the target's own grid, and each voxel there takes the most
probable structure that reaches the threshold: so outlines are as smooth as the target's voxels allow. Bounds:
beside one window's features and `max_accumulator_bytes` of probabilities, memory holds the target three times
on its own grid and one structure's probability on it, however many structures there are; by registration also
two volumes of the prepared target per structure (`registration`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from training.errors import ConfigError, DataError
from training.inference.confidence import network_confidence
from training.inference.label_maps import claim, in_whole, keep_largest
from training.inference.prediction import predict
from training.inference.prompted import Finetuned
from training.inference.prompts import (
    InContextNet,
    InferenceConfig,
    Progress,
    Prompt,
    Reference,
    StepProgress,
    Structure,
    encode_references,
    inference_for,
)
from training.inference.raw_scans import RawScan, installed_reader, listed, structures_of
from training.inference.registration import THRESHOLD, Carried, carry_structures
from training.inference.results import Found, Segmentation, confidence_note
from training.network import TrainedOn, load_checkpoint

Method: TypeAlias = Literal["network", "registration", "both"]
ProbabilitySink: TypeAlias = Callable[[Structure, NDArray[np.float32]], object]
"""Called with each structure's probability on the target's own grid, one structure after the other."""


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """Settings of the segmentation of targets."""

    inference: InferenceConfig | None = None
    """Windows, mirroring, precision, threshold, memory; None for those of the network's training."""
    by: Method = "network"
    """Method. network: in context. registration: the references' masks are registered to the target, without
    a network. both: the same, and the position where the network finds the structures is tried too
    (docs/results.md compares them)."""
    largest_component: bool = False
    """Whether only the largest connected part (over faces, edges and corners) of each structure is kept."""
    across_modalities: bool = False
    """Whether a target may be of a modality that no reference has."""


class Segmenter:
    """A prompt, references to carry over, or both, ready for any number of targets."""

    def __init__(
        self,
        net: InContextNet | None,
        prompt: Prompt | None,
        config: SegmentConfig,
        *,
        modalities: Sequence[str] = (),
        references: Sequence[Reference] = (),
        structures: Sequence[Structure] = (),
        finetuned: bool = False,
        device: torch.device | str = "cpu",
    ) -> None:
        """Make a segmenter from an encoded prompt.

        Args:
            net: The network, on `device`, in evaluation mode; None if the masks are registered without it.
            prompt: Prompt made with the same `inference`; each structure has one label value, that of the
                results. None without a network.
            config: Settings.
            modalities: Modalities of the references; empty accepts targets of any.
            references: The first one for pictures; all of them if masks are registered.
            structures: Structures to segment if masks are registered; empty takes the prompt's.
            finetuned: Whether the network was fine-tuned on the structures, so that each gets a confidence.
            device: Where to compute.

        Raises:
            ConfigError: Masks are to be registered, but there is no reference; or there is no network for a
                method that needs one.
        """
        if config.by != "network" and not references:
            raise ConfigError(f"by {config.by}: there is no reference to carry over. Give one")
        if config.by != "registration" and net is None:
            raise ConfigError(f"by {config.by}: there is no network to ask. Name a checkpoint")
        self.inference = config.inference or _inference_of(net)
        self.net, self.prompt, self.device = net, prompt, device
        self.config = replace(config, inference=self.inference)
        wanted = tuple(structures) or (prompt.structures + prompt.missing if prompt else ())
        shown = [structure for structure in wanted if _is_shown(structure, references)]
        if config.by == "network" and prompt:
            shown = list(prompt.structures)
        self.structures = tuple(shown)
        """Structures to segment: those that the prompt, or a reference's mask, shows."""
        self.missing = tuple(structure for structure in wanted if structure not in shown)
        """Structures without a voxel left in the references."""
        self.modalities = tuple(modalities)
        self.references = tuple(references)
        self._finetuned = finetuned

    @classmethod
    def from_references(
        cls,
        net: InContextNet | None,
        references: Sequence[RawScan],
        config: SegmentConfig,
        *,
        labels: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> Segmenter:
        """Return a segmenter of the structures that references show.

        Args:
            net: The network, on `device`, in evaluation mode; None if `config.by` is "registration".
            references: Scans with masks; each counts the same for the structures that it shows.
            config: Settings.
            labels: Label values to segment; empty takes all.
            device: Where to compute.

        Raises:
            DataError: There is no reference, no such label value, or nothing of it left at this spacing.
        """
        if not references:
            raise DataError("no reference was given; an image and a mask are needed")
        structures = structures_of(references, labels)
        shown = [_reference(scan) for scan in references]
        if not any(structure.mask(part.labels).any() for structure in structures for part in shown):
            spacing = " x ".join(f"{side:g}" for side in references[0].spacing_zyx_mm)
            raise DataError(
                f"{references[0].location}: nothing of label {listed([s.values[0] for s in structures])} is "
                f"left at {spacing} mm: the structures are too small, or outside the body that is "
                "cropped to. Choose a finer spacing, or another reference"
            )
        prompt = None
        if net is not None and config.by != "registration":
            prompt = _encoded(net, shown, structures, config, device)
        return cls(
            net,
            prompt,
            config,
            modalities=sorted({scan.modality for scan in references}),
            references=shown,
            structures=structures,
            device=device,
        )

    @classmethod
    def from_finetuned(
        cls,
        tuned: Finetuned,
        config: SegmentConfig,
        *,
        labels: Sequence[int] = (),
        device: torch.device | str = "cpu",
    ) -> Segmenter:
        """Return a segmenter of the structures that a network was fine-tuned on, without references.

        Args:
            tuned: From `load_finetuned`; its network is moved to `device`.
            config: Settings; as many structures are predicted together as in the training.
            labels: Label values to segment; empty takes all.
            device: Where to compute.

        Raises:
            DataError: No such label value.
            ConfigError: Mirrored copies are requested.
        """
        inference = replace(
            config.inference or tuned.inference(),
            masks_at_once=tuned.masks_at_once,
            whole_mask=True,
            whole_scans=tuned.table.whole_scans,
            fine_windows=tuned.table.fine_windows,
        )
        prompt = tuned.prompt(inference, device)
        missing = [value for value in labels if value not in tuned.values]
        if missing:
            raise DataError(
                f"the network was not fine-tuned on label {missing[0]}, but on {listed(tuned.values)}"
            )
        if labels:
            rows = [place for place, value in enumerate(tuned.values) if value in labels]
            prompt = replace(
                prompt,
                structures=tuple(tuned.structures[row] for row in rows),
                priors=tuple(tuple(stage[[*rows, -1]] for stage in priors) for priors in prompt.priors),
            )
        return cls(
            tuned.net.to(device),
            prompt,
            replace(config, inference=inference),
            modalities=tuned.modalities,
            finetuned=True,
            device=device,
        )

    def segment(
        self,
        target: RawScan,
        *,
        on_probability: ProbabilitySink | None = None,
        progress: StepProgress | None = None,
    ) -> Segmentation:
        """Segment one target.

        Args:
            target: Prepared with the settings of the references.
            on_probability: Called with each structure's probability on the target's own grid, in turn.
            progress: Called with "windows" (of the network) or "references" (that are registered), the number
                done, and the number of all.

        Raises:
            DataError: The target is of another modality than the references.
        """
        self._check_modality(target)
        threshold = self.inference.threshold if self.config.by == "network" else THRESHOLD
        places = np.zeros(target.own_shape, np.uint16)
        best = np.full(target.own_shape, threshold, np.float32)
        passes, carried = self._passes(target, progress)
        confidences = list(carried.confidences if carried else (None,) * len(self.structures))
        for _, part, probabilities in passes:
            for place, probability in enumerate(probabilities, start=part.start):
                if self._finetuned:
                    confidences[place] = network_confidence(probability, threshold)
                above = None if on_probability else threshold
                placed = target.to_own_grid(probability, above=above)
                if on_probability:
                    on_probability(self.structures[place], in_whole(placed, target.own_shape))
                if placed:
                    claim(places[placed[0]], best[placed[0]], placed[1], place + 1)
        del best
        if self.config.largest_component:
            for place in range(len(self.structures)):
                keep_largest(places, place + 1)
        return self._result(target, places, carried, confidences)

    def _passes(
        self, target: RawScan, progress: StepProgress | None
    ) -> tuple[Iterable[tuple[int, slice, NDArray[np.float32]]], Carried | None]:
        """Return the probabilities (k, z, y, x) of groups of structures in turn, and the registered masks."""
        windows = partial(progress, "windows") if progress else None
        if self.config.by == "network":
            return self._drawn(target, windows), None
        seen = None
        if self.config.by == "both" and self.prompt:
            seen = np.zeros(target.image.shape, np.float32)
            for _, _, probabilities in self._drawn(target, windows):
                np.maximum(seen, probabilities.max(axis=0), out=seen)
        registered = partial(progress, "references") if progress else None
        carried = carry_structures(
            self.references, self.structures, target.image, seen=seen, progress=registered
        )
        return [(0, slice(0, len(self.structures)), carried.probabilities)], carried

    def _drawn(
        self, target: RawScan, progress: Progress | None
    ) -> Iterable[tuple[int, slice, NDArray[np.float32]]]:
        """Yield the network's probabilities (k, z, y, x) of groups of structures."""
        assert self.net is not None
        assert self.prompt is not None
        return predict(
            self.net,
            target.image,
            [self.prompt],
            self.inference,
            device=self.device,
            progress=progress,
        )

    def _check_modality(self, target: RawScan) -> None:
        if self.config.across_modalities or not self.modalities or target.modality in self.modalities:
            return
        how = f" ({target.modality_origin})" if target.modality_origin.startswith("guess") else ""
        raise DataError(
            f"{target.location}: the target is {target.modality.upper()}{how}, the references are "
            f"{' and '.join(self.modalities).upper()}. Give a reference of its modality; name the modality "
            "where it is guessed wrongly, or allow another one on purpose (--across-modalities)"
        )

    def _result(
        self,
        target: RawScan,
        places: NDArray[np.uint16],
        carried: Carried | None,
        confidences: Sequence[float | None],
    ) -> Segmentation:
        """Replace indices of structures by their label values, and measure each structure."""
        structures = self.structures
        counts = np.bincount(places.ravel(), minlength=len(structures) + 1)
        values = np.array([0, *(structure.values[0] for structure in structures)])
        found = tuple(
            Found(
                structure=structure,
                num_voxels=int(n),
                volume_ml=float(n) * target.own_voxel_ml,
                confidence=confidence,
            )
            for structure, n, confidence in zip(structures, counts[1:], confidences, strict=True)
        )
        notes = [*target.notes]
        if self.missing:
            lost = listed([structure.values[0] for structure in self.missing])
            notes.append(f"nothing of label {lost} is left in the references at this spacing: not looked for")
        if carried is not None or self._finetuned:
            notes.append(
                confidence_note(
                    found, "drawn by a network" if self._finetuned else "carried over by registration"
                )
            )
        return Segmentation(
            labels=(values.astype(np.uint16) if values.max() > 255 else values.astype(np.uint8))[places],
            found=found,
            scan=target,
            reference=self.references[0] if self.references else None,
            agreement=carried.agreement if carried else None,
            notes=tuple(notes),
        )


def segment(
    checkpoint: InContextNet | Path | str | None,
    *,
    references: Sequence[tuple[Path | str, Path | str]],
    target: Path | str,
    labels: Sequence[int] = (),
    config: SegmentConfig | None = None,
    spacing_mm: float | None = None,
    modality: str | None = None,
    probabilities: bool = False,
) -> Segmentation:
    """Segment a raw scan as reference scans with masks show it.

    For several targets make a `Segmenter`: it encodes the references once, reports progress, and takes scans
    of any reader.

    Args:
        checkpoint: A network, which runs on its own device, or as for `load_checkpoint`. None: no network.
        references: Files of images and of masks on their grids; a mask may hold several label values.
        target: A file, or the folder of a DICOM series.
        labels: Label values to segment; empty takes all in the masks.
        config: Settings; by default by "both".
        spacing_mm: Voxel edge to work at; by default that of the network's training, 1.5 where unknown.
        modality: "ct", "mr" or "pet" of all scans, if their files do not say.
        probabilities: Whether the result holds each structure's probability on the target's own grid.

    Raises:
        TrainingError: No checkpoint of Iris, no such label, an empty mask, a target of another modality.
    """
    net = load_checkpoint(checkpoint) if isinstance(checkpoint, Path | str) else checkpoint
    trained_on: TrainedOn = getattr(net, "trained_on", None) or TrainedOn()
    ingest = trained_on.ingest_settings
    if spacing_mm is not None:
        ingest["spacing_mm"] = spacing_mm
    read = installed_reader()
    weight = next(net.parameters(), None) if isinstance(net, nn.Module) else None
    device = torch.device("cpu") if weight is None else weight.device
    shown = [read(image, mask=mask, ingest=ingest, modality=modality) for image, mask in references]
    by: Method = "both" if net is not None else "registration"
    config = config or SegmentConfig(by=by)
    segmenter = Segmenter.from_references(net, shown, config, labels=labels, device=device)
    kept: dict[int, NDArray[np.float32]] = {}

    def keep(structure: Structure, probability: NDArray[np.float32]) -> None:
        kept[structure.values[0]] = probability

    result = segmenter.segment(
        read(target, ingest=ingest, modality=modality),
        on_probability=keep if probabilities else None,
    )
    return replace(result, probabilities=kept)


def _encoded(
    net: InContextNet,
    references: Sequence[Reference],
    structures: Sequence[Structure],
    config: SegmentConfig,
    device: torch.device | str,
) -> Prompt | None:
    """Return the prompt; None if no structure is left for the network, but masks can be registered."""
    inference = config.inference or _inference_of(net)
    try:
        return encode_references(net, references, structures, inference, device=device)
    except DataError:
        if config.by == "network":
            raise
        return None


def _inference_of(net: InContextNet | None) -> InferenceConfig:
    return inference_for(getattr(net, "trained_on", None) or TrainedOn())


def _is_shown(structure: Structure, references: Sequence[Reference]) -> bool:
    return any(structure.mask(reference.labels).any() for reference in references)


def _reference(scan: RawScan) -> Reference:
    if scan.labels is None:
        raise DataError(f"{scan.location}: a reference needs a mask")
    return Reference(image=scan.image, labels=scan.labels)
