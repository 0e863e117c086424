"""Pieces of an HTML page: the frame, lists of facts, figures, tables. Values in, markup out.

Reads: text and PNG bytes; text is escaped where a docstring does not say that it is markup already.
Writes: HTML. Bounds: the style sheet and the script of the page are files of this package, read once a page.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from pipeline.report.overview import Picture


def page(title: str, header: str, links: Sequence[tuple[str, str]], body: str) -> str:
    """The frame of a page, with style and script inline."""
    package = files("pipeline.report")
    style = (package / "report.css").read_text(encoding="utf-8")
    script = (package / "report.js").read_text(encoding="utf-8")
    nav = "".join(f'<li><a href="{target}">{escape(name)}</a></li>' for target, name in links)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>\n<style>\n{style}</style></head>\n<body><header>{header}</header>"
        f'<nav aria-label="Sections"><ul>{nav}</ul></nav>\n<main>{body}</main>\n'
        "<footer>Written by <code>mass inspect</code>. Not for clinical use.</footer>"
        f"<script>\n{script}</script></body></html>\n"
    )


def image(picture: Picture) -> str:
    """A picture with its bytes in the page."""
    data = base64.b64encode(picture.png).decode("ascii")
    return (
        f'<img src="data:image/png;base64,{data}" width="{picture.width}" height="{picture.height}" '
        f'alt="{escape(picture.alt)}">'
    )


def figure(picture: Picture, caption: str = "") -> str:
    """A picture and its caption; `caption` is markup and takes the place of its own."""
    text = caption or escape(picture.caption)
    return f"<figure>{image(picture)}{f'<figcaption>{text}</figcaption>' if text else ''}</figure>"


def number_list(counts: Sequence[tuple[str, str]]) -> str:
    """The few numbers that matter, large: number and what it counts."""
    items = "".join(f"<li><b>{escape(n)}</b><span>{escape(what)}</span></li>" for n, what in counts)
    return f'<ul class="numbers">{items}</ul>'


def fact_list(facts: Sequence[tuple[str, str]]) -> str:
    """Names and values."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f'<div class="card"><dl class="facts">{rows}</dl></div>'


def table(
    heading: Sequence[str], rows: Sequence[Sequence[str]], *, text: int = 1, style: str = "text"
) -> str:
    """A table to sort by its headings; cells are markup, the first `text` columns are words, not numbers."""
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
    """A cell; one that holds a number also says it without separators, for sorting."""
    plain = cell.replace(",", "").removesuffix("%")
    value = f' data-value="{plain}"' if plain.replace(".", "", 1).isdigit() else ""
    return f'<td class="{style}"{value}>{cell}</td>'
