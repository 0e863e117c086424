"""The `mass` command: parse, run one command, return its exit code.

Nothing heavy is imported before a command runs, so that `mass --help` answers at once. Exit codes: 0 all is
well, 1 something failed (a table says what), 2 the command cannot be carried out, 130 interrupted. With
--json, a command that ends with 2 or 130 writes why as "error".
"""

from __future__ import annotations

import io
import json
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code.

    Args:
        argv: Its arguments; by default those of the process.
    """
    from commands.arguments import parser
    from commands.caches import set_process_defaults

    arguments = parser().parse_args(argv)
    from commands.disk_errors import explain_disk_error
    from commands.terminal import CommandError
    from pipeline.errors import PipelineError
    from storage import StorageError
    from training import TrainingError

    if isinstance(sys.stdout, io.TextIOWrapper):
        # lines appear at once, also through a pipe; names of files may hold what the terminal cannot show
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    set_process_defaults()
    module, _, name = arguments.run.partition(":")
    try:
        place_cache(arguments)
        code, document = getattr(import_module(module), name)(arguments)
        if arguments.json:
            write_json(arguments.json, document)
    except (CommandError, PipelineError, StorageError, TrainingError) as error:
        return _ended(arguments, str(error))
    except OSError as error:
        explained = explain_disk_error(error, vars(arguments).values())
        if not explained:
            raise
        return _ended(arguments, explained)
    except KeyboardInterrupt:
        return _ended(arguments, "interrupted; the same command goes on from here", code=130)
    return int(code)


def write_json(path: Path, document: Mapping[str, Any]) -> None:
    """Write the results of a command for machines."""
    path.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")


def _ended(arguments: Namespace, why: str, code: int = 2) -> int:
    """Say why a command ended early, also for machines; return its exit code."""
    print(f"mass: {why}", file=sys.stderr)
    if arguments.json:
        with suppress(OSError):  # the file may be what the command failed at
            write_json(arguments.json, {"error": why})
    return code


def place_cache(arguments: Namespace) -> None:
    """Let a command read its store through the cache that --cache names."""
    folder = getattr(arguments, "cache", None)
    if folder is None:
        return
    from storage import CacheSettings, StoreUrl, check_cache, with_cache

    if not isinstance(arguments.store, StoreUrl):
        print("--cache: the store is on disk, it is read without a cache", file=sys.stderr)
        return
    cache = CacheSettings(folder.absolute(), arguments.cache_size * 10**9)
    check_cache(cache)
    arguments.store = with_cache(arguments.store, cache)
