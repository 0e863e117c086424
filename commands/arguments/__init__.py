"""Every `mass` command: its options, and the function that runs it, which is named and not imported.

A command is an entry of `COMMANDS`, a function here that adds its options, and a module in `commands/`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from commands.arguments.exchange import add_export, add_import_masks
from commands.arguments.store import (
    add_inspect,
    add_lift,
    add_plan,
    add_prepare,
    add_repair,
    add_score,
    add_status,
    add_verify,
)
from commands.arguments.train import (
    add_carry,
    add_classify,
    add_embed,
    add_finetune,
    add_pair,
    add_pretrain,
)
from commands.arguments.use import (
    EXAMPLES as EXAMPLES,
    add_demo,
    add_evaluate,
    add_export_weights,
    add_segment,
)

COMMANDS: dict[str, tuple[str, str, Callable[[argparse.ArgumentParser], None]]] = {
    "prepare": (
        "commands.prepare.command:run_prepare",
        "bring a store up to date with a folder or manifest of scans",
        add_prepare,
    ),
    "plan": (
        "commands.plan:run_plan",
        "predict time, bytes, memory and failures of prepare, from headers",
        add_plan,
    ),
    "status": (
        "commands.status:run_status",
        "show what a store has, what failed, what is stale",
        add_status,
    ),
    "verify": (
        "commands.verify:run_verify",
        "check every committed byte of a store",
        add_verify,
    ),
    "repair": (
        "commands.repair:run_repair",
        "make again what verify finds damaged in a store, from its sources",
        add_repair,
    ),
    "lift": (
        "commands.lift:run_lift",
        "bring a store of an older format version to the newest one",
        add_lift,
    ),
    "score": (
        "commands.score:run_score",
        "score proposals against the labels in a store",
        add_score,
    ),
    "inspect": (
        "commands.inspect:run_inspect",
        "draw proposals: a page, and PNG files beside it",
        add_inspect,
    ),
    "import-masks": (
        "commands.import_masks:run_import_masks",
        "bring masks made elsewhere into a store, or take them out again",
        add_import_masks,
    ),
    "export": (
        "commands.export:run_export",
        "write scans, labels and proposals of a store for other tools",
        add_export,
    ),
    "pair": (
        "commands.pair:run_pair",
        "find by registration which regions of two patients are the same, for pretrain",
        add_pair,
    ),
    "pretrain": (
        "commands.pretrain:run_pretrain",
        "train a network on a store's proposals",
        add_pretrain,
    ),
    "carry": (
        "commands.carry:run_carry",
        "carry labels of a few scans over to others by registration, for finetune",
        add_carry,
    ),
    "finetune": (
        "commands.finetune:run_finetune",
        "train a network on labelled scans of a store",
        add_finetune,
    ),
    "segment": (
        "commands.segment:run_segment",
        "segment raw scans: the structures that a reference and its mask show",
        add_segment,
    ),
    "evaluate": (
        "commands.evaluate:run_evaluate",
        "measure in-context segmentation on labelled scans",
        add_evaluate,
    ),
    "embed": (
        "commands.classify:run_embed",
        "write an encoder's features of a store's scans",
        add_embed,
    ),
    "classify": (
        "commands.classify:run_classify",
        "train a classifier of whole scans",
        add_classify,
    ),
    "export-weights": (
        "commands.export_weights:run_export_weights",
        "write a network's weights for other tools",
        add_export_weights,
    ),
    "demo": (
        "commands.demo:run_demo",
        "run all stages on bundled scans, and segment one that was kept out",
        add_demo,
    ),
}
"""By name: `module:function` that runs it, its help, the function that adds its options."""


def parser() -> argparse.ArgumentParser:
    """Return the parser of every command and its options."""
    top = argparse.ArgumentParser(
        prog="mass",
        description="Annotation-free pretraining on 3D medical scans: from raw scans to a store of masks.",
        epilog="Exit codes: 0 all well, 1 something failed, 2 cannot be carried out, 130 interrupted.",
    )
    top.add_argument("--version", action="version", version=f"mass {version('mass3d')}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for name, (run, help, add_options) in COMMANDS.items():
        added = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        added.set_defaults(run=run)
        added.add_argument("--json", type=Path, metavar="FILE", help="write the result for machines")
        add_options(added)
    return top
