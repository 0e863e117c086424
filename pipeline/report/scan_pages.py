"""The page of one scan in full: pictures, tables, distributions, and the viewer.

Pictures are PNG data URIs, charts are inline SVG, style and script are inline: no network, no fonts, no other
file. The page can be read in light and dark themes, by keyboard and with a screen reader; all but the
viewer is there without scripts.

Reads: `pipeline.report.overview` dataclasses, a pack. Writes: HTML text, the same for the same input.
Bounds: one to six MB, and the pack.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from pipeline.quality import ScanScore, ScoreConfig, StoreScore, summarize
from pipeline.report.assets import page_scripts
from pipeline.report.charts import Curve, bars, curves, histogram, scatter
from pipeline.report.html import embedded_page, fact_list, figure, html_page, number_list, table
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


def scan_page(report: ScanReport, pack: bytes | None = None) -> str:
    """Return the page of one scan, with the viewer if its pack is given (`pipeline.report.packs`)."""
    overview = report.overview
    title = f"{overview.scan_id} · mask proposals"
    links = [("#sizes", "By size"), ("#labels", "Against labels"), ("#numbers", "Distributions")]
    links.append(("#coverage", "Coverage"))
    header = f"<h1>{escape(overview.scan_id)}</h1>{numbers_of(overview)}"
    body, scripts = scan_body(report, prefix="", level=2), ""
    if pack is not None:
        links.insert(0, ("#viewer", "Viewer"))
        viewer = '<h2 id="viewer">Viewer</h2><div id="explorer"></div>'
        body = f'<section aria-labelledby="viewer">{viewer}</section>{body}'
        scripts = page_scripts({overview.scan_id: pack})
    return html_page(title, header, links, body, app=scripts)


def explorer_page(
    title: str,
    header: str,
    links: Sequence[tuple[str, str]],
    body: str,
    *,
    packs: Mapping[str, bytes],
    note: str = "",
) -> str:
    """Return a page with the viewer above its body; scans open by links of class "open" (`web/main.js`).

    Args:
        title: Title of the page, text.
        header: Contents of the header, markup.
        links: (target, name) of the navigation, without the viewer.
        body: Contents, markup.
        packs: Pack of each scan that the viewer shows (`pipeline.report.packs`); the first opens by itself.
        note: Remark above the viewer, markup.
    """
    if not packs:
        return html_page(title, header, links, body)
    viewer = (
        '<section aria-labelledby="viewer"><h2 id="viewer">Viewer</h2>'
        f'<p class="wide">{note}</p><p class="wide note" id="viewer-note"></p>'
        '<div id="explorer"></div></section>'
    )
    scripts = page_scripts(packs)
    return html_page(title, header, [("#viewer", "Viewer"), *links], viewer + body, app=scripts)


def viewer_page(scan_id: str, pack: bytes) -> str:
    """Return a page with the viewer of one scan alone, to be shown as a frame (`notebooks/viewer.py`)."""
    viewer = '<section id="viewer" aria-label="Viewer"><div id="explorer"></div></section>'
    return embedded_page(f"{scan_id} · viewer", viewer, app=page_scripts({scan_id: pack}))


def scan_body(report: ScanReport, *, prefix: str, level: int) -> str:
    """Return all sections on one scan; the ids of elements begin with the prefix, headings have the level."""
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


def numbers_of(overview: ScanOverview) -> str:
    """Return the main numbers of a scan as large figures."""
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
        chart = quality_curve(summarize([score], ScoreConfig(counts=score.counts)))
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


def quality_curve(score: StoreScore) -> str:
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
