"""Pieces of a page that know nothing of a report: tables, bars, JSON values in words."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

Cell = str | tuple[str, float | None]
"""HTML, or HTML and what to sort by."""

_UNITS = {"_mb": "MB", "_mj": "mJ", "_ms": "ms", "_c": "°C", "_mhz": "MHz", "_hz": "Hz"}


def script_json(value: Any) -> str:
    """Returns JSON that may stand inside a `<script>` element: nothing in it ends that or opens a comment."""
    text = json.dumps(value, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Cell]],
    *,
    right: tuple[int, ...] = (),
    long: tuple[int, ...] = (),
    search: str = "",
) -> str:
    """Returns a table that scrolls by itself where it is too wide.

    Args:
        columns: Titles; where all are empty there is no head.
        rows: Cells.
        right: Columns of numbers.
        long: Columns whose text may break anywhere.
        search: Prefix of the ids of its search field and count; with it the table can be sorted.
    """
    classes = [' class="n"' if c in right else ' class="long"' if c in long else "" for c in range(len(columns))]
    head = "".join(f"<th{kind}>{escape(title)}</th>" for kind, title in zip(classes, columns, strict=True))
    lines = []
    for row in rows:
        cells = []
        for kind, cell in zip(classes, row, strict=True):
            text, value = cell if isinstance(cell, tuple) else (cell, None)
            sort = f' data-v="{"" if value is None else value}"' if isinstance(cell, tuple) else ""
            cells.append(f"<td{kind}{sort}>{text}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    own = f' class="sortable" data-search="{search}-search" data-count="{search}-count"' if search else ""
    titles = f"<thead><tr>{head}</tr></thead>" if any(columns) else ""
    frame = "scroll deep" if search else "scroll"
    return f'<div class="{frame}"><table{own}>{titles}<tbody>{"".join(lines)}</tbody></table></div>'


def bar(name: str, told: str, style: str, *, critical: bool) -> str:
    """Returns a name, what is told of it, and a bar below; `style` places it."""
    kind = "critical" if critical else "other"
    return (
        f'<div class="row"><div class="name"><span>{escape(name)}</span><span>{escape(told)}</span></div>'
        f'<div class="track"><div class="{kind}" style="{style}"></div></div></div>'
    )


def notes(texts: Sequence[str]) -> str:
    """Returns a paragraph for each text."""
    return "".join(f'<p class="soft">{escape(text)}</p>' for text in texts)


def facts(value: Any) -> str:
    """Returns what is inside a JSON value as a table of two columns; empty where there is nothing."""
    rows = [[escape(name), escape(text)] for name, text in _flat("", value)]
    return table(["", ""], rows, long=(0, 1)) if rows else ""


def _flat(place: str, value: Any) -> Iterator[tuple[str, str]]:
    """Yields the place of each value in words, and a text."""
    if isinstance(value, Mapping) and list(value) == ["unavailable"]:
        yield place, f"unavailable: {value['unavailable']}"
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flat(f"{place} · {_words(str(key))}" if place else _words(str(key)), item)
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        for at, item in enumerate(value, 1):
            named = isinstance(item, Mapping) and "name" in item
            own = {k: v for k, v in item.items() if k != "name"} if named else item
            yield from _flat(f"{place} · {item['name']}" if named else f"{place} {at}", own)
    elif isinstance(value, list):
        yield place, ", ".join(map(_shown, value))
    elif value is not None:
        yield place, _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _words(key: str) -> str:
    """Returns a key of a report in words: `rss_peak_mb` as `rss peak (MB)`."""
    unit = next((suffix for suffix in _UNITS if key.endswith(suffix)), "")
    return key.removesuffix(unit).replace("_", " ") + (f" ({_UNITS[unit]})" if unit else "")


def short(value: float | None) -> str:
    """Returns a count in few characters: `"1.3 M"`."""
    for factor, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value is not None and value >= factor:
            return f"{value / factor:.1f} {suffix}"
    return "" if value is None else f"{value:.0f}"
