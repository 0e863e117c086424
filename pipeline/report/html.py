"""Parts of an HTML page: the frame, lists of facts, figures, tables. Values in, markup out.

Reads: text and PNG bytes; text is escaped, unless a docstring says that it is markup already.
Writes: HTML. Bounds: style and scripts are files of `pipeline/report/web`.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from pipeline.report.assets import POLICY, web_text
from pipeline.report.overview import Picture


def html_page(
    title: str,
    header: str,
    links: Sequence[tuple[str, str]],
    body: str,
    *,
    app: str = "",
    refresh_seconds: int = 0,
) -> str:
    """Return a complete page, with style and script inline.

    Args:
        title: Title of the page, text.
        header: Contents of the header, markup.
        links: (target, name) of the navigation.
        body: Contents, markup.
        app: Scripts of a page with a table or a viewer, markup (`pipeline.report.assets`).
        refresh_seconds: How often the browser reads the page again; 0 for never.
    """
    refresh = f'<meta http-equiv="refresh" content="{refresh_seconds}">' if refresh_seconds else ""
    nav = "".join(f'<li><a href="{target}">{escape(name)}</a></li>' for target, name in links)
    return _document(
        title,
        f'<body><header>{header}</header><nav aria-label="Sections"><ul>{nav}</ul></nav>\n'
        f"<main>{body}</main>\n"
        "<footer>Written by <code>mass inspect</code>. Not for clinical use.</footer>"
        f"<script>\n{web_text('sorting.js')}</script>{app}</body>",
        style=web_text("page.css") + (web_text("explorer.css") if app else ""),
        refresh=refresh,
    )


def embedded_page(title: str, body: str, *, app: str) -> str:
    """Return a page without header and navigation, to be shown as a frame inside another page.

    Args:
        title: Title of the page, text.
        body: Contents, markup.
        app: Scripts, markup (`pipeline.report.assets`).
    """
    style = web_text("page.css") + web_text("explorer.css")
    return _document(title, f'<body class="embedded"><main>{body}</main>{app}</body>', style=style)


def _document(title: str, body: str, *, style: str, refresh: str = "") -> str:
    """Return a page of a body element and a style; `refresh` is markup."""
    page = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n{body}</html>\n"
    )
    return page.encode("utf-8", "backslashreplace").decode()  # names of files may be no UTF-8


def image(picture: Picture) -> str:
    """Return an image element with the picture's bytes in the page."""
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" width="{picture.width}" height="{picture.height}" '
        f'alt="{escape(picture.alt)}">'
    )


def figure(picture: Picture, caption: str = "") -> str:
    """Return a picture and its caption; `caption` is markup and replaces the picture's own."""
    text = caption or escape(picture.caption)
    return f"<figure>{image(picture)}{f'<figcaption>{text}</figcaption>' if text else ''}</figure>"


def number_list(counts: Sequence[tuple[str, str]]) -> str:
    """Return a list of large numbers: (number, what it counts)."""
    items = "".join(f"<li><b>{escape(n)}</b><span>{escape(what)}</span></li>" for n, what in counts)
    return f'<ul class="numbers">{items}</ul>'


def fact_list(facts: Sequence[tuple[str, str]]) -> str:
    """Return a list of names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f'<div class="card"><dl class="facts">{rows}</dl></div>'


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1, style: str = "text"
) -> str:
    """Return a table that can be sorted by its headings.

    Args:
        heading: Headings, markup.
        rows: Cells, markup.
        text: The first `text` columns are words, all others are numbers.
        style: CSS class of the word columns.
    """
    classes = [style if k < text else "" for k in range(len(heading))]
    head = "".join(
        f'<th scope="col" class="{c}">{name}</th>' for c, name in zip(classes, heading, strict=True)
    )
    cells = ("".join(_cell(c, cell) for c, cell in zip(classes, row, strict=True)) for row in rows)
    body = "".join(f"<tr>{row}</tr>" for row in cells)
    return (
        f'<div class="scroll"><table class="sortable"><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cell(style: str, cell: str) -> str:
    """Return a cell; a number is also stored without separators, for sorting."""
    plain = cell.replace(",", "").removesuffix("%")
    value = f' data-value="{plain}"' if plain.replace(".", "", 1).isdigit() else ""
    return f'<td class="{style}"{value}>{cell}</td>'
