"""Which cells there are, what they need first, and how long they take.

A cell is one set, arm, use and seed. A form of the bench says how many of each: `FULL`, or `QUICK`. The
fine-tunings are a cross through the table of labels and steps, not all of it (`--cross` for all): 150 steps
at every number of labels, and 50 and 400 steps at five labels. With `carried`, there are fine-tunings that
train on labels carried over by registration, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from benchmarks.bench.arms import ARMS, source_arm
from benchmarks.bench.sets import SETS, SetDescription
from benchmarks.bench.uses import RIVALS

PRETRAIN, ONE_SHOT, FIVE_SHOT, CLASSIFY = "pretrain", "one-shot", "five-shot", "classify"
FINETUNE, CARRIED = "finetune-", "carried-"
"""How the uses begin that train on labels: those of labelled scans alone, or carried ones, too."""
ALL = 0
"""Number of labelled scans: all there are."""
_WITHOUT_NAME = tuple(arm for arm, about in ARMS.items() if not about.only_when_named)


@dataclass(frozen=True, kw_only=True)
class Form:
    """How much of the bench is run."""

    sets: tuple[str, ...]
    arms: tuple[str, ...]
    rivals: tuple[str, ...] = tuple(RIVALS)
    seeds: tuple[int, ...] = (0, 1, 2)
    pretraining_steps: int = 400
    window_voxels: int = 24_576
    """Most voxels of the window that a scan is shown in."""
    early_fraction: float = 0.0
    """Fraction of the steps of every pretraining, the first ones, in windows of a quarter of these voxels, as
    in `mass pretrain --recipe whole` (0.75)."""
    grid: tuple[tuple[int, int], ...] = ((1, 150), (5, 50), (5, 150), (5, 400), (20, 150), (ALL, 150))
    """Labelled scans and steps of the fine-tunings."""
    carried: tuple[tuple[int, int], ...] = ()
    """Labelled scans and steps of the fine-tunings that are trained on carried labels, too."""
    prompts: int = 3
    """References, one after the other, of one-shot answers."""

    def crossed(self, counts: Sequence[int], steps: Sequence[int]) -> Form:
        """The form with all combinations of these."""
        counts = counts or sorted({count for count, _ in self.grid}, key=lambda count: count or 10**9)
        steps = steps or sorted({number for _, number in self.grid})
        return replace(self, grid=tuple((count, number) for count in counts for number in steps))


FULL = Form(
    sets=tuple(name for name in SETS if name not in ("sts_pet", "spinal_cord")),
    arms=_WITHOUT_NAME,
)
QUICK = Form(
    sets=("phantoms", "hippocampus"),
    arms=tuple(arm for arm in _WITHOUT_NAME if arm != "ours-encoder"),
    rivals=("copied", "registration"),
    seeds=(0,),
    pretraining_steps=150,
    window_voxels=16_384,
    grid=((1, 50), (5, 50)),
    prompts=1,
)


@dataclass(frozen=True, kw_only=True, order=True)
class Cell:
    """One figure of the table, before it is averaged over seeds."""

    set: str
    seed: int
    arm: str
    use: str

    @property
    def name(self) -> str:
        """As filters and messages name it."""
        return f"{self.set}/{self.arm}/{self.use}/seed{self.seed}"

    @property
    def needs(self) -> Cell | None:
        """The pretraining that has to be done before."""
        if self.use == PRETRAIN or self.arm in RIVALS or not ARMS[source_arm(self.arm)].is_pretrained:
            return None
        return replace(self, arm=source_arm(self.arm), use=PRETRAIN)

    @property
    def labels_and_steps(self) -> tuple[int, int] | None:
        """Labelled scans and steps, if it is a fine-tuning."""
        if not self.use.startswith((FINETUNE, CARRIED)):
            return None
        _, count, steps = self.use.split("-")
        return (ALL if count == "all" else int(count)), int(steps)

    @property
    def with_carried(self) -> bool:
        """Whether it is a fine-tuning that is trained on carried labels, too."""
        return self.use.startswith(CARRIED)


def finetune_use(count: int, steps: int, kind: str = FINETUNE) -> str:
    """The use of a fine-tuning."""
    return f"{kind}{count or 'all'}-{steps}"


def cells_of(form: Form, about: Mapping[str, SetDescription], pools: Mapping[str, int]) -> Iterator[Cell]:
    """Cells of some sets, seeds first, so that the table is even after any number of them.

    Args:
        form: How much is run.
        about: The sets.
        pools: Labelled scans of each set; fine-tunings on more are left out.
    """
    for seed in form.seeds:
        for name in about:
            shown = [ONE_SHOT] + ([FIVE_SHOT] if pools[name] >= 5 else [])
            tuned = [
                finetune_use(count, steps)
                for count, steps in form.grid
                if count < pools[name] or (count == pools[name] and (ALL, steps) not in form.grid)
            ]
            tuned += [
                finetune_use(count, steps, CARRIED) for count, steps in form.carried if count <= pools[name]
            ]
            labelled = about[name].labels
            for rival in form.rivals if labelled else ():
                yield from (Cell(set=name, arm=rival, use=use, seed=seed) for use in shown)
            for arm in form.arms:
                own = ARMS[arm]
                uses = [PRETRAIN] if own.is_pretrained else []
                uses += shown if labelled and own.in_context else []
                uses += tuned if labelled else []
                uses += [CLASSIFY] if about[name].classes and arm != "ours-encoder" else []
                if not labelled and own.masks == "expert":
                    continue
                yield from (Cell(set=name, arm=arm, use=use, seed=seed) for use in uses)


def chosen(cells: Iterable[Cell], patterns: Sequence[str]) -> list[Cell]:
    """The cells that match one of the patterns, with the pretrainings that they need.

    Args:
        cells: All cells.
        patterns: SET/ARM/USE; later parts may be left out, and each may have * in it. None: all cells.

    Raises:
        SystemExit: A pattern matches nothing.
    """
    all_cells = list(cells)
    if not patterns:
        return all_cells
    wanted: set[Cell] = set()
    for pattern in patterns:
        parts = [*pattern.split("/"), "*", "*"][:3]
        found = {
            cell
            for cell in all_cells
            if all(
                fnmatchcase(value, part or "*")
                for value, part in zip((cell.set, cell.arm, cell.use), parts, strict=True)
            )
        }
        if not found:
            known = {
                kind: sorted({getattr(cell, kind) for cell in all_cells}) for kind in ("set", "arm", "use")
            }
            listed = "; ".join(f"{kind}s: {', '.join(names)}" for kind, names in known.items())
            raise SystemExit(f"--only {pattern}: no cell is SET/ARM/USE of this. There are {listed}")
        wanted |= found
    wanted |= {cell.needs for cell in wanted if cell.needs}
    return [cell for cell in all_cells if cell in wanted]


# ------------------------------------------------------------------------------------------------ time

SECONDS_A_MEGAVOXEL = {"masks": 4.8, "task": 2.6, "finetune": 3.0}
"""Processor seconds of a training step, a million voxels of the windows that the encoder sees; float32, on a
core that other work kept busy: an upper bound."""
SECONDS_A_STEP = 0.2
"""Of the optimiser (Muon), whatever the window."""
SECONDS_A_PAIR = {"copied": 0.1, "demons": 4.0, "registration": 8.0}
START_SECONDS = 5.0
BATCH, VIEWS = 2, 2


def seconds_of(
    cell: Cell, form: Form, *, targets: int, pool: int, measured: Mapping[tuple[str, str, str], float]
) -> float:
    """Estimated seconds of one core.

    Args:
        cell: The cell.
        form: Steps and windows.
        targets: Scans that are asked about.
        pool: Labelled scans.
        measured: Mean seconds of cells that were done, by set, arm and use; they come first.
    """
    done = measured.get((cell.set, cell.arm, cell.use))
    if done is not None:
        return done
    mega = form.window_voxels / 1e6
    asked = targets * 6 * mega * SECONDS_A_MEGAVOXEL["finetune"]
    if cell.use == PRETRAIN:
        kind = "masks" if ARMS[cell.arm].masks else "task"
        shown = mega * (1 - 0.75 * form.early_fraction)
        step = SECONDS_A_STEP + BATCH * VIEWS * shown * SECONDS_A_MEGAVOXEL[kind]
        return START_SECONDS + form.pretraining_steps * step
    if cell.arm in RIVALS:
        prompts = form.prompts if cell.use == ONE_SHOT else 5
        return targets * prompts * SECONDS_A_PAIR[cell.arm]
    if cell.labels_and_steps:
        steps = cell.labels_and_steps[1]
        step = SECONDS_A_STEP + BATCH * mega * SECONDS_A_MEGAVOXEL["finetune"]
        carrying = pool * SECONDS_A_PAIR["registration"] if cell.with_carried else 0.0
        return START_SECONDS + carrying + asked + steps * step
    if cell.use == CLASSIFY:
        return START_SECONDS + (targets + pool) * 3 * mega
    return START_SECONDS + asked * (form.prompts if cell.use == ONE_SHOT else 5) / 3
