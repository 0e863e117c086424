"""The report of `mass inspect`: one self-contained HTML page.

Pictures are PNG data URIs, charts are inline SVG, style and script are inline: no network, no fonts, no other
file. The page can be read in light and dark themes, by keyboard and with a screen reader, and it is complete
without scripts.

Reads: `pipeline.report.overview` dataclasses, `StoreScore`. Writes: HTML text, the same for the same input.
Bounds: one to six MB for each scan in full, 15 KB for each row of the overview.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from pipeline.quality import ScanScore, ScoreConfig, StoreScore, summarize
from pipeline.report.charts import Curve, bars, curves, histogram, scatter
from pipeline.report.html import fact_list, figure, image, number_list, page, table
from pipeline.report.overview import Match, ScanOverview, ScanReport, SizeGroup
from pipeline.report.slices import volume_text

_KEYS = (
    '<span class="key" style="background:#ffdd33" aria-hidden="true"></span>outline: expert label'
    '<span class="key" style="background:#40c4ff" aria-hidden="true"></span>filled: best proposal'
)
_VIEW = (
    "Axial slices are seen from the feet and coronal ones from the front, so that the patient's right (R) is "
    "on the left; A front, P back, S head, I feet."
)


@dataclass(frozen=True, kw_only=True)
class StoreFacts:
    """Facts about a store on its page."""

    name: str
    """Name of the store as the user gave it, not a full path."""
    facts: tuple[tuple[str, str], ...] = ()
    """Names and values, such as the spacing and the format version."""
    failures: tuple[tuple[str, str, str], ...] = ()
    """Scan, reason and remedy of each scan that could not be prepared."""


def scan_page(report: ScanReport) -> str:
    """Return the page of one scan."""
    overview = report.overview
    title = f"{overview.scan_id} · mask proposals"
    links = [("#sizes", "By size"), ("#labels", "Against labels"), ("#numbers", "Distributions")]
    links.append(("#coverage", "Coverage"))
    header = f"<h1>{escape(overview.scan_id)}</h1>{_numbers(overview)}"
    return page(title, header, links, _scan_body(report, prefix="", level=2))


def store_page(
    store: StoreFacts,
    overviews: Sequence[ScanOverview],
    *,
    score: StoreScore | None = None,
    reports: Sequence[ScanReport] = (),
) -> str:
    """Return the page of a store: a summary, one row per scan, and the scans of `reports` in full.

    Args:
        store: Name, facts, failures.
        overviews: All scans of the store.
        score: The store's score against labels, if it has labels.
        reports: Scans shown in full below the table; their rows link to them.
    """
    full = {report.overview.scan_id for report in reports}
    proposals = sum(overview.num_proposals for overview in overviews)
    counts = [(f"{len(overviews):,}", "scans"), (f"{proposals:,}", "proposals")]
    if score is not None and score.overall is not None:
        counts.append((f"{score.overall.iou[-1]:.3f}", "mean best IoU"))
        counts.append(
            (f"{score.overall.recall[0][-1]:.0%}", f"structures found (IoU ≥ {score.recall_at[0]:g})")
        )
    if store.failures:
        counts.append((f"{len(store.failures):,}", "scans failed"))
    header = f"<h1>{escape(store.name)}</h1>{number_list(counts)}"
    links = [("#datasets", "Data sets"), ("#scans", "Scans")]
    parts = [fact_list(store.facts) if store.facts else "", _datasets(overviews, score)]
    parts.append(_scan_table(overviews, full))
    if store.failures:
        links.append(("#failures", "Failures"))
        parts.append(_failure_table(store.failures))
    for report in reports:
        name = report.overview.scan_id
        heading = f'<h2 id="{_anchor(name)}">{escape(name)}</h2>{_numbers(report.overview)}'
        body = _scan_body(report, prefix=_anchor(name), level=3)
        parts.append(f'<section class="scan">{heading}{body}</section>')
    return page(f"{store.name} · mask proposals", header, links, "".join(parts))


def _scan_body(report: ScanReport, *, prefix: str, level: int) -> str:
    """Return all sections on one scan; the ids of elements begin with the prefix."""
    start = f"{prefix}-" if prefix else ""
    head = f"h{level}"
    return "\n".join(
        [
            f'<div class="card">{figure(report.sheet)}</div>',
            fact_list(report.facts),
            f'<{head} id="{start}sizes">Proposals by size</{head}>',
            "<p>For each size class and imported source, the best-ranked proposals that do not overlap on "
            "these slices, each in its own colour, then the first few one by one. "
            f'<span class="note">{_VIEW}</span></p>',
            *(_size_group(group, level + 1) for group in report.groups),
            f'<{head} id="{start}labels">Against the expert labels</{head}>',
            _matches(report),
            f'<{head} id="{start}numbers">Distributions</{head}>',
            _distributions(report),
            f'<{head} id="{start}coverage">Coverage</{head}>',
            _coverage(report),
        ]
    )


def _numbers(overview: ScanOverview) -> str:
    counts = [
        (f"{overview.num_proposals:,}", "proposals"),
        (f"{overview.num_atoms:,}", "atoms"),
        (f"{overview.covered_fraction:.1%}", "of the body covered"),
        (f"{overview.outside_fraction:.1%}", "of the proposals outside the body"),
    ]
    if overview.mean_iou is not None and overview.found_fraction is not None:
        counts.append((f"{overview.mean_iou:.3f}", f"mean best IoU, {overview.num_structures} structures"))
        counts.append((f"{overview.found_fraction:.0%}", "structures found (IoU ≥ 0.5)"))
    if overview.slic_iou is not None:
        counts.append((f"{overview.slic_iou:.3f}", "mean best IoU of flat SLIC"))
    return number_list(counts)


def _size_group(group: SizeGroup, level: int) -> str:
    note = f"{group.num_proposals:,} proposals, {group.body_fraction:.0%} of the body in at least one"
    tiles = "".join(figure(picture) for picture in group.examples)
    return (
        f'<div class="card"><h{level}>{escape(group.name)} '
        f'<span class="quiet">· {note}</span></h{level}>'
        f"{figure(group.planes)}<h{level + 1}>Best-ranked</h{level + 1}>"
        f'<div class="tiles">{tiles}</div></div>'
    )


def _grade(iou: float) -> str:
    return "good" if iou >= 0.7 else "fair" if iou >= 0.5 else "poor"


def _matches(report: ScanReport) -> str:
    """Return pictures of structures with their best proposals, a table of all, and the curve against n."""
    score = report.score
    if score is None or not (score.structures or score.skipped):
        return "<p>This scan has no labels.</p>"
    parts = []
    if score.structures:
        chart = _quality_curve(summarize([score], ScoreConfig(counts=score.counts)))
        parts.append(f'<div class="charts">{chart}{_quality_by_size(score)}</div>')
        shown = len(report.matches)
        note = (
            f"The {shown} structures"
            if shown == len(score.structures)
            else (f"{shown} of {len(score.structures)} structures, spread over the ranking")
        )
        parts.append(f'<p class="wide">{note}, best matched first. {_KEYS}</p>')
        parts.append(f'<div class="tiles">{"".join(_match(match) for match in report.matches)}</div>')
        parts.append(f"<details open><summary>All scored structures</summary>{_structures(score)}</details>")
    if score.skipped:
        names = ", ".join(f"{escape(s.name)} ({escape(s.reason)})" for s in score.skipped)
        parts.append(
            f"<details><summary>Not scored: {len(score.skipped)} structures</summary><p>{names}</p></details>"
        )
    return "".join(parts)


def _match(match: Match) -> str:
    score = match.score
    iou = score.iou[-1]
    caption = (
        f'<b>{escape(score.name)}</b><br>IoU <b class="{_grade(iou)}">{iou:.2f}</b> · '
        f"Dice {score.dice[-1]:.2f}<br>{volume_text(score.volume_mm3 / 1000)} · "
        f"#{score.best} {escape(score.best_source)}"
    )
    return figure(match.picture, caption)


def _quality_curve(score: StoreScore) -> str:
    """Return the mean best IoU and the fraction found against the number of proposals."""
    overall = score.overall
    if overall is None:
        return ""
    names = [*(f"{n:,}" for n in score.counts), "all"]
    series = [Curve(name="mean best IoU", values=overall.iou)]
    for style, (threshold, recall) in enumerate(
        zip(score.recall_at[:2], overall.recall, strict=False), start=1
    ):
        series.append(Curve(name=f"found at IoU ≥ {threshold:g}", values=recall, style=style))
    if overall.slic_iou is not None:
        flat = tuple([overall.slic_iou] * len(names))
        series.append(Curve(name="mean best IoU, flat SLIC", values=flat, dashed=True))
    chart = curves(
        names, series, label="Quality against the number of proposals", unit="best-ranked proposals kept"
    )
    return f"<div><h4>Quality against the number of proposals</h4>{chart}</div>"


def _quality_by_size(score: ScanScore) -> str:
    """Return the best IoU of each structure against its volume: it shows which sizes are missed."""
    names = [entry.name for entry in score.structures]
    volumes = [entry.volume_mm3 / 1000 for entry in score.structures]
    best = [entry.iou[-1] for entry in score.structures]
    chart = scatter(names, volumes, best, label="Best IoU by volume", unit="volume of the structure in mL")
    return f"<div><h4>Best IoU by size of structure</h4>{chart}</div>"


def _structures(score: ScanScore) -> str:
    flat = any(entry.slic_iou is not None for entry in score.structures)
    heading = ["structure", "mL", "best IoU", "best Dice", "IoU of atoms", *(["IoU of SLIC"] if flat else [])]
    origins = sorted({one.name for entry in score.structures for one in entry.by_origin})
    heading += [*(f"Dice, {escape(name)}" for name in origins), "proposal", "source"]
    rows = []
    for entry in sorted(score.structures, key=lambda e: (-e.iou[-1], e.name)):
        iou = entry.iou[-1]
        row = [
            escape(entry.name),
            f"{entry.volume_mm3 / 1000:.2f}",
            f'<b class="{_grade(iou)}">{iou:.3f}</b>',
        ]
        row += [f"{entry.dice[-1]:.3f}", f"{entry.limit_iou:.3f}"]
        row += ([f"{entry.slic_iou:.3f}" if entry.slic_iou is not None else ""]) if flat else []
        dice = {one.name: f"{one.dice:.3f}" for one in entry.by_origin}
        row += [dice.get(name, "") for name in origins]
        rows.append([*row, str(entry.best), escape(entry.best_source)])
    return table(heading, rows)


def _distributions(report: ScanReport) -> str:
    names = [name for name, _ in report.sources]
    charts = {
        "Size": histogram(
            report.volumes_ml, label="Proposals by volume", logarithmic=True, unit="volume in mL"
        ),
        "Source": bars(names, [float(n) for _, n in report.sources], label="Proposals by source"),
        "Score": histogram(report.scores, label="Proposals by score", unit="score"),
    }
    return (
        '<div class="charts">' + "".join(f"<div><h4>{n}</h4>{c}</div>" for n, c in charts.items()) + "</div>"
    )


def _coverage(report: ScanReport) -> str:
    shares = report.coverage_shares
    chart = bars(
        [name for name, _ in shares], [100 * f for _, f in shares], label="Body by number of proposals"
    )
    return (
        f"<p>{report.overview.covered_fraction:.1%} of the body's voxels lie in at least one proposal.</p>"
        f'<div class="card">{figure(report.coverage)}</div><div class="charts"><div>'
        f"<h4>Percent of the body by number of proposals that contain it</h4>{chart}</div></div>"
    )


def _datasets(overviews: Sequence[ScanOverview], score: StoreScore | None) -> str:
    """Return one row per data set, with its score if it has labels."""
    scored = {summary.group: summary for summary in score.datasets} if score is not None else {}
    flat = any(summary.slic_iou is not None for summary in scored.values())
    heading = ["data set", "modality", "scans", "proposals a scan", "body covered"]
    if scored:
        heading += ["structures", "best IoU", "best Dice", "found ≥ 0.5", "found ≥ 0.7", "IoU of atoms"]
    heading += ["IoU of SLIC", "ratio"] if flat else []
    rows = []
    for name in sorted({overview.dataset for overview in overviews}):
        members = [overview for overview in overviews if overview.dataset == name]
        row = [
            escape(name),
            escape(", ".join(sorted({m.modality.upper() for m in members}))),
            f"{len(members):,}",
        ]
        row.append(f"{sum(m.num_proposals for m in members) / len(members):,.0f}")
        row.append(f"{sum(m.covered_fraction for m in members) / len(members):.1%}")
        summary = scored.get(name)
        if summary is not None:
            row += [str(summary.structures), f"{summary.iou[-1]:.3f}", f"{summary.dice[-1]:.3f}"]
            row += [f"{recall[-1]:.0%}" for recall in summary.recall[:2]] + [f"{summary.limit_iou:.3f}"]
            ratio = summary.ratio(-1)
            row += (
                [f"{summary.slic_iou:.3f}", f"{ratio:.2f}"] if ratio and summary.slic_iou is not None else []
            )
        rows.append(row + [""] * (len(heading) - len(row)))
    curve = f'<div class="charts">{_quality_curve(score)}</div>' if score is not None and scored else ""
    return f'<h2 id="datasets">Data sets</h2>{table(heading, rows, text=2)}{curve}'


def _scan_table(overviews: Sequence[ScanOverview], full: set[str]) -> str:
    """Return one row per scan; scans shown in full below are links."""
    scored = any(overview.mean_iou is not None for overview in overviews)
    heading = ['<span class="quiet">slice</span>', "scan", "data set", "modality", "size in mm", "atoms"]
    heading += [
        "proposals",
        "body covered",
        "outside the body",
        *(["structures", "mean best IoU", "found ≥ 0.5"] if scored else []),
    ]
    rows = []
    for o in sorted(overviews, key=lambda overview: overview.scan_id):
        name = escape(o.scan_id)
        link = f'<a href="#{_anchor(o.scan_id)}">{name}</a>' if o.scan_id in full else name
        size = " × ".join(f"{mm:.0f}" for mm in o.extent_zyx_mm)
        row = [
            image(o.thumbnail),
            link,
            escape(o.dataset),
            escape(o.modality.upper()),
            size,
            f"{o.num_atoms:,}",
        ]
        row += [f"{o.num_proposals:,}", f"{o.covered_fraction:.1%}", f"{o.outside_fraction:.1%}"]
        if scored:
            row += ["" if o.mean_iou is None else str(o.num_structures)]
            row += [
                "" if o.mean_iou is None else f'<span class="{_grade(o.mean_iou)}">{o.mean_iou:.3f}</span>'
            ]
            row += ["" if o.found_fraction is None else f"{o.found_fraction:.0%}"]
        rows.append(row)
    return f'<h2 id="scans">Scans</h2>{table(heading, rows, text=4)}'


def _failure_table(failures: Sequence[tuple[str, str, str]]) -> str:
    rows = [[escape(cell) for cell in failure] for failure in sorted(failures)]
    listed = table(["scan", "reason", "remedy"], rows, text=3, style="long")
    return f'<h2 id="failures">Not prepared</h2>{listed}'


def _anchor(scan_id: str) -> str:
    """Return the id of a scan's section; scan ids need no other escaping."""
    return f"scan-{escape(scan_id)}"
