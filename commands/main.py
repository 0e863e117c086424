"""The `mass` command: parse, run one command, return its exit code.

Nothing heavy is imported before a command runs, so that `mass --help` answers at once. Exit codes: 0 all is
well, 1 something failed (a table says what), 2 the command cannot be carried out, 130 interrupted.
"""

from __future__ import annotations

import io
import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from importlib import import_module


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
        sys.stdout.reconfigure(line_buffering=True)  # lines appear at once, also through a pipe
    set_process_defaults()
    module, _, name = arguments.run.partition(":")
    try:
        place_cache(arguments)
        code, document = getattr(import_module(module), name)(arguments)
        if arguments.json:
            arguments.json.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    except (CommandError, PipelineError, StorageError, TrainingError) as error:
        print(f"mass: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        explained = explain_disk_error(error, vars(arguments).values())
        if not explained:
            raise
        print(f"mass: {explained}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mass: interrupted; the same command goes on from here", file=sys.stderr)
        return 130
    return int(code)


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
