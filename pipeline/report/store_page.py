"""The page of a store: overview, unusual scans first, the table of all scans, the viewer, failures.

One file without network. Overview, unusual scans and failures are markup; the table and the viewer are
drawn by the browser from JSON and packs (`pipeline/report/web`), so that the page has no element for each of
100,000 rows.

Reads: `StoreContents`. Writes: HTML text, the same for the same input.
Bounds: 200 bytes per row, 15 kB per picture; packs and scans in full are what the caller gives.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

import numpy as np

from pipeline.quality import SIZE_CLASS_NAMES, StoreScore
from pipeline.report.assets import page_scripts
from pipeline.report.charts import bars, counted_histogram, histogram
from pipeline.report.html import fact_list, figure, html_page, image, number_list, table
from pipeline.report.outliers import Unusual, find_unusual, small_groups
from pipeline.report.overview import Picture, ScanReport
from pipeline.report.rows import SCORE_EDGES, ScanRow
from pipeline.report.scan_pages import numbers_of, quality_curve, scan_body

MOST_UNUSUAL = 24
"""Unusual scans shown one by one; the table has all."""
MOST_FAILURES = 200
"""Failures listed one by one; reasons are counted over all."""
MOST_SOURCES = 16
"""Sources with a bar of their own."""

SORTED_NOTE = (
    "Click a heading to sort, a row to open the scan. Search for words, or for values: "
    "<code>iou&lt;0.3</code>, <code>proposals&gt;=1000</code>, <code>modality=ct</code>; all must hold."
)


@dataclass(frozen=True, kw_only=True)
class StoreContents:
    """Everything that a store's page shows."""

    name: str
    """Name of the store as the user gave it, not a full path."""
    facts: tuple[tuple[str, str], ...] = ()
    """Names and values, such as the spacing and the format version."""
    failures: tuple[tuple[str, str, str], ...] = ()
    """Scan, reason and remedy of each scan that could not be prepared."""
    rows: Sequence[ScanRow] = ()
    score: StoreScore | None = None
    """The store's score against labels, if it has labels and they were scored."""
    thumbnails: Mapping[str, Picture] = field(default_factory=dict)
    """Pictures of some scans, for the unusual ones and the gallery."""
    reports: Sequence[ScanReport] = ()
    """Scans shown in full, as pictures."""
    packs: Mapping[str, bytes] = field(default_factory=dict)
    """Scans that the viewer shows without a server (`pipeline.report.packs`)."""
    served: bool = False
    """Whether a server gives the packs of all scans."""
    notice: str = ""
    """What the reader must know first, such as that scans are still being read."""


def store_page(store: StoreContents) -> str:
    """Return the page of a store."""
    unusual = find_unusual(store.rows)
    sections = {
        "overview": ("Overview", _overview(store)),
        "unusual": ("Unusual", _unusual(store, unusual)),
        "scans": ("Scans", _table_section(store)),
        "viewer": ("Viewer", _viewer_section(store)),
        "slices": ("Slices", _gallery(store)),
        "failures": ("Failures", _failures(store.failures)),
        "full": ("In full", _in_full(store.reports)),
    }
    shown = {key: value for key, value in sections.items() if value[1]}
    body = "".join(
        f'<section aria-labelledby="{key}"><h2 id="{key}">{_HEADINGS[key]}</h2>{markup}</section>'
        for key, (_, markup) in shown.items()
    )
    notice = f'<p class="notice" role="status">{escape(store.notice)}</p>' if store.notice else ""
    header = f"<h1>{escape(store.name)}</h1>{number_list(_counts(store))}{notice}"
    scripts = page_scripts(store.packs, served=store.served, rows=_rows_for_table(store, unusual))
    links = [(f"#{key}", name) for key, (name, _) in shown.items()]
    return html_page(f"{store.name} · mask proposals", header, links, body, app=scripts)


_HEADINGS = {
    "overview": "Overview",
    "unusual": "Look at these first",
    "scans": "Scans",
    "viewer": "Viewer",
    "slices": "A slice of each scan",
    "failures": "Not prepared",
    "full": "Scans in full",
}


def _counts(store: StoreContents) -> list[tuple[str, str]]:
    counts = [(f"{len(store.rows):,}", "scans")]
    counts += [
        (f"{n:,}", modality.upper())
        for modality, n in sorted(Counter(r.modality for r in store.rows).items())
    ]
    counts.append((f"{sum(row.num_proposals for row in store.rows):,}", "proposals"))
    stored = [row.stored_bytes for row in store.rows if row.stored_bytes is not None]
    if stored:
        counts.append((_bytes_text(sum(stored)), "on the disk"))
    taken = [row.seconds for row in store.rows if row.seconds is not None]
    if taken:
        of_some = "" if len(taken) == len(store.rows) else f" {len(taken):,} of them"
        counts.append((_time_text(sum(taken)), f"to prepare{of_some}"))
    if store.score is not None and store.score.overall is not None:
        overall = store.score.overall
        counts.append((f"{overall.iou[-1]:.3f}", "mean best IoU"))
        counts.append((f"{overall.recall[0][-1]:.0%}", f"found (IoU ≥ {store.score.recall_at[0]:g})"))
    if store.failures:
        counts.append((f"{len(store.failures):,}", "failed"))
    return counts


def _overview(store: StoreContents) -> str:
    facts = fact_list(store.facts) if store.facts else ""
    return facts + _datasets(store.rows, store.score) + _charts(store)


def _charts(store: StoreContents) -> str:
    """Return the distributions over all scans and proposals."""
    rows = store.rows
    charts = {
        "Volume of the scans": _spread(
            rows, lambda r: float(np.prod(r.extent_zyx_mm)) / 1e6, "litres", logarithmic=True
        ),
        "Largest voxel edge of the files": _spread(
            rows, lambda r: r.source_spacing_mm[2] if r.source_spacing_mm else None, "mm"
        ),
        "Spread of intensities": _spread(rows, lambda r: r.std, "standard deviation", logarithmic=True),
        "Proposals of a scan": _spread(rows, lambda r: float(r.num_proposals), "proposals"),
        "Bytes of a scan": _spread(
            rows,
            lambda r: r.stored_bytes / 1e6 if r.stored_bytes is not None else None,
            "MB",
            logarithmic=True,
        ),
        "Time to prepare a scan": _spread(rows, lambda r: r.seconds, "seconds", logarithmic=True),
        "Body covered by proposals": _spread(
            rows, lambda r: 100 * r.covered if r.covered is not None else None, "percent"
        ),
        "Proposals by size": _by_size(rows),
        "Proposals by score": _by_score(rows),
        "Proposals by source": _by_source(rows),
        "Quality": quality_curve(store.score) if store.score is not None else "",
    }
    shown = "".join(
        markup if name == "Quality" else f"<div><h4>{name}</h4>{markup}</div>"
        for name, markup in charts.items()
        if markup
    )
    return f'<div class="charts">{shown}</div>'


def _spread(
    rows: Sequence[ScanRow], value: Callable[[ScanRow], float | None], unit: str, *, logarithmic: bool = False
) -> str:
    """Return a histogram of a value over the scans; nothing where it is not known."""
    known = [v for row in rows if (v := value(row)) is not None]
    if not known:
        return ""
    if min(known) == max(known):
        return f"<p>{known[0]:,.4g} {escape(unit)}, every scan</p>"
    bins = int(np.clip(2 * np.sqrt(len(known)), 6, 30))
    return histogram(np.array(known), label=f"Scans by {unit}", bins=bins, logarithmic=logarithmic, unit=unit)


def _by_size(rows: Sequence[ScanRow]) -> str:
    known = [row.size_counts for row in rows if row.size_counts is not None]
    if not known:
        return ""
    totals = np.sum(known, axis=0)
    return bars(SIZE_CLASS_NAMES, [float(n) for n in totals], label="Proposals by size")


def _by_score(rows: Sequence[ScanRow]) -> str:
    known = [row.score_counts for row in rows if row.score_counts is not None]
    if not known:
        return ""
    totals = [int(n) for n in np.sum(known, axis=0)]
    return counted_histogram(totals, SCORE_EDGES, label="Proposals by score", unit="score")


def _by_source(rows: Sequence[ScanRow]) -> str:
    total: Counter[str] = Counter()
    for row in rows:
        total.update(dict(row.source_counts or ()))
    if not total:
        return ""
    most = sorted(total.items(), key=lambda item: (-item[1], item[0]))
    shown, rest = most[:MOST_SOURCES], most[MOST_SOURCES:]
    shown += [("others", sum(n for _, n in rest))] if rest else []
    return bars([name for name, _ in shown], [float(n) for _, n in shown], label="Proposals by source")


def _datasets(rows: Sequence[ScanRow], score: StoreScore | None) -> str:
    """Return one row per data set, with its score if it has labels."""
    scored = {summary.group: summary for summary in score.datasets} if score is not None else {}
    flat = any(summary.slic_iou is not None for summary in scored.values())
    heading = ["data set", "modality", "scans", "proposals per scan", "body covered"]
    if scored:
        heading += ["structures", "best IoU", "best Dice", "found ≥ 0.5", "found ≥ 0.7", "IoU of atoms"]
    heading += ["IoU of SLIC", "ratio"] if flat else []
    lines = []
    for name in sorted({row.dataset for row in rows}):
        members = [row for row in rows if row.dataset == name]
        covered = [row.covered for row in members if row.covered is not None]
        line = [
            escape(name),
            escape(", ".join(sorted({m.modality.upper() for m in members}))),
            f"{len(members):,}",
            f"{sum(m.num_proposals for m in members) / len(members):,.0f}",
            f"{sum(covered) / len(covered):.1%}" if covered else "",
        ]
        summary = scored.get(name)
        if summary is not None:
            line += [str(summary.structures), f"{summary.iou[-1]:.3f}", f"{summary.dice[-1]:.3f}"]
            line += [f"{recall[-1]:.0%}" for recall in summary.recall[:2]] + [f"{summary.limit_iou:.3f}"]
            ratio = summary.ratio(-1)
            slic = summary.slic_iou
            line += [f"{slic:.3f}", f"{ratio:.2f}"] if ratio and slic is not None else []
        lines.append(line + [""] * (len(heading) - len(line)))
    return table(heading, lines, text=2)


def _unusual(store: StoreContents, unusual: Sequence[Unusual]) -> str:
    """Return the unusual scans with their reasons, the most unusual first."""
    small = small_groups(store.rows)
    note = (
        f" Too few scans to compare within: {escape(', '.join(small[:12]))}"
        f"{f' and {len(small) - 12} more' if len(small) > 12 else ''}."
        if small
        else ""
    )
    rule = (
        "Scans far from the median of their data set: more than five robust standard deviations, and a "
        f"difference that matters.{note}"
    )
    if not unusual:
        return f"<p>No scan is unlike the others of its data set. {rule}</p>"
    datasets = {row.scan_id: row.dataset for row in store.rows}
    cards = "".join(
        _card(one, datasets[one.scan_id], store.thumbnails.get(one.scan_id)) for one in unusual[:MOST_UNUSUAL]
    )
    more = len(unusual) - MOST_UNUSUAL
    rest = f"<p>{more:,} more in the table: search for <code>unusual</code>.</p>" if more > 0 else ""
    return f'<p class="wide">{rule}</p><ul class="cards">{cards}</ul>{rest}'


def _card(one: Unusual, dataset: str, thumbnail: Picture | None) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in one.reasons)
    name = escape(one.scan_id)
    picture = image(thumbnail) if thumbnail is not None else ""
    return (
        f'<li class="card">{picture}<div><a href="#viewer" class="open" data-scan="{name}">{name}</a>'
        f' <span class="quiet">{escape(dataset)}</span><ul>{reasons}</ul></div></li>'
    )


def _table_section(store: StoreContents) -> str:
    if not store.rows:
        return "<p>The store has no scan yet.</p>"
    return (
        f'<p class="wide note">{SORTED_NOTE}</p><div id="scan-table"></div>'
        "<noscript><p>The table and the viewer need JavaScript.</p></noscript>"
    )


def _viewer_section(store: StoreContents) -> str:
    if not store.rows:
        return ""
    if store.served:
        note = "Choose a scan in the table."
    else:
        note = (
            f"{len(store.packs):,} of {len(store.rows):,} scans can be opened in this page; "
            "<code>mass inspect STORE --serve</code> shows every one, at every resolution."
        )
    return f'<p class="wide note" id="viewer-note">{note}</p><div id="explorer"></div>'


def _gallery(store: StoreContents) -> str:
    """Return a slice of each scan that has a picture; a click opens the scan."""
    names = {row.scan_id: row.dataset for row in store.rows}
    items = "".join(
        figure(picture, f'<a href="#viewer" class="open" data-scan="{escape(name)}">{escape(name)}</a>')
        for name, picture in sorted(store.thumbnails.items(), key=lambda item: (names[item[0]], item[0]))
    )
    return f'<div class="tiles small">{items}</div>' if items else ""


def _failures(failures: Sequence[tuple[str, str, str]]) -> str:
    """Return the failures: reasons with their counts, then one by one."""
    if not failures:
        return ""
    reasons = Counter(reason for _, reason, _ in failures)
    counted = (
        table(
            ["reason", "scans"],
            [
                [escape(reason), f"{n:,}"]
                for reason, n in sorted(reasons.items(), key=lambda i: (-i[1], i[0]))
            ],
            style="long",
        )
        if len(reasons) < len(failures)
        else ""
    )
    listed = sorted(failures)[:MOST_FAILURES]
    lines = [[escape(cell) for cell in failure] for failure in listed]
    more = len(failures) - len(listed)
    rest = f"<p>{more:,} more: <code>mass status STORE</code> lists them.</p>" if more else ""
    return counted + table(["scan", "reason", "remedy"], lines, text=3, style="long") + rest


def _in_full(reports: Sequence[ScanReport]) -> str:
    parts = []
    for report in reports:
        name = escape(report.overview.scan_id)
        body = scan_body(report, prefix=f"scan-{name}", level=4)
        parts.append(
            f'<details class="scan" id="scan-{name}"><summary><b>{name}</b></summary>'
            f"{numbers_of(report.overview)}{body}</details>"
        )
    return "".join(parts)


def _rows_for_table(store: StoreContents, unusual: Sequence[Unusual]) -> list[list[object]]:
    """Return the rows as `web/table.js` reads them, in the order of its columns."""
    reasons = {one.scan_id: "; ".join(one.reasons) for one in unusual}
    return [
        [
            row.scan_id,
            row.dataset,
            row.modality.upper(),
            row.split,
            [round(mm) for mm in row.extent_zyx_mm],
            _rounded(row.source_spacing_mm[2] if row.source_spacing_mm else None, 2),
            row.num_proposals,
            row.num_atoms,
            _rounded(row.covered, 4),
            _rounded(row.outside, 4),
            row.num_structures,
            _rounded(row.mean_iou, 4),
            _rounded(row.stored_bytes / 1e6 if row.stored_bytes is not None else None, 2),
            reasons.get(row.scan_id, ""),
            _rounded(row.seconds, 1),
        ]
        for row in sorted(store.rows, key=lambda row: row.scan_id)
    ]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)


def _time_text(seconds: float) -> str:
    """Return a time as text: "8 s", "12 min", "3.5 h"."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.3g} h"


def _bytes_text(num_bytes: float) -> str:
    """Return a number of bytes as text: "12.3 MB"."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:.3g} TB"
