"""The page of a `mass prepare` in progress: progress, failures with reasons, the newest scans.

Reads: the work. Writes: HTML text. Bounds: the newest 200 scans.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path

from commands.pages.watch import watched
from commands.prepare.work import Work
from commands.terminal import State
from pipeline.report import html_page, number_list, table
from storage import store_name

_MOST_SCANS = 200


def preparing_page(work: Work, *, now: str = "", refresh_seconds: int = 0) -> str:
    """Return the page.

    Args:
        work: The run.
        now: Progress in one line; empty at the end.
        refresh_seconds: How often a browser reads the page again; 0 for never.
    """
    report = work.report()
    outcomes = list(work.outcomes.values())
    committed = [one for one in outcomes if one.state == "committed" and one.why]
    failed = report.failed
    numbers = [
        (f"{len(committed):,}", f"prepared of {len(work.plan.jobs):,} to do"),
        (f"{len(report.skipped):,}", "done before"),
        (f"{len(failed):,}", "failed"),
    ]
    state = f'<p class="state" role="status">{escape(now or report.summary())}</p>'
    parts = []
    if failed:
        rows = [tuple(map(escape, (f.scan_id, f.location, f.reason, f.remedy))) for f in failed]
        parts.append('<h2 id="failed">Failed</h2>')
        parts.append(table(("scan", "file", "reason", "what to do"), rows, text=4, style="long"))
    if committed:
        newest = [
            (
                escape(one.scan_id),
                escape(one.dataset),
                escape("; ".join(one.notes)),
                f"{one.num_proposals:,}",
                f"{one.seconds:.1f}",
            )
            for one in reversed(committed[-_MOST_SCANS:])
        ]
        of = f" (the newest {_MOST_SCANS})" if len(committed) > _MOST_SCANS else ""
        parts.append(f'<h2 id="scans">Prepared{of}</h2>')
        parts.append(
            table(("scan", "data set", "notes", "proposals", "seconds"), newest, text=3, style="long")
        )
    if not now:
        store = escape(str(work.store_path.name))
        parts.append(f"<p>Look at what was proposed: <code>mass inspect {store} --out report.html</code></p>")
    links = [("#failed", "Failed")] * bool(failed) + [("#scans", "Prepared")] * bool(committed)
    name = store_name(work.store_path)
    header = f"<h1>{escape(name)}</h1>{state}{number_list(numbers)}"
    return html_page(f"{name} · mass prepare", header, links, "".join(parts), refresh_seconds=refresh_seconds)


@contextmanager
def watched_preparing(work: Work) -> Iterator[Callable[[State], None] | None]:
    """Keep the page of the work up to date, beside the store; see `commands.pages.watch`."""
    # For a store at a URL, in the current folder.
    store = work.store_path.resolve() if isinstance(work.store_path, Path) else Path(work.store_path.name)

    def make(now: str, refresh_seconds: int) -> str:
        return preparing_page(work, now=now, refresh_seconds=refresh_seconds)

    with watched(store.with_name(f"{store.name}-progress.html"), make) as take:
        yield take
