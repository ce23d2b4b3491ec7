"""A latency report as one page: no network, no library, readable on a phone, in the dark and on paper.

Everything is in the page when it is written; the script in it only sorts and searches tables.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import IO, Any

from edgemm.profiling.charts import css_class, histogram, number, scatter
from edgemm.profiling.markup import Cell, bar, facts, notes, script_json, short, table
from edgemm.profiling.report import BACK_TO_BACK

BUNDLE_REPORTS = {"search": "report/search.json", "modalities": "report/modalities.json"}
"""What of a bundle is shown beside the times: the front of plans, and accuracy where a modality is missing."""

SHOWN = ("p50", "p90", "p99", "p99.9")
"""Percentiles of the tables; the JSON has more."""


def bundle_reports(path: Path) -> dict[str, Any]:
    """Returns those of `BUNDLE_REPORTS` that a bundle holds, by their names here; of a file there are none.

    The bundle was verified when it was opened.
    """
    there = {name: path / place for name, place in BUNDLE_REPORTS.items()}
    return {name: json.loads(f.read_text(encoding="utf-8")) for name, f in there.items() if f.is_file()}


def write_page(out: IO[bytes], report: Mapping[str, Any], source: Path) -> None:
    """Writes the page of a report, with what the bundle at `source` holds for it."""
    out.write(render_page(report, bundle_reports(source)).encode())


def render_page(report: Mapping[str, Any], bundle: Mapping[str, Any] | None = None) -> str:
    """Returns the page of a latency report.

    Args:
        report: `edgemm.profiling.report.Report`; whatever it lacks is left out.
        bundle: From `bundle_reports`.
    """
    kept = bundle or {}
    cards = (
        ("wide", _budget(report)),
        ("card", _distribution("back to back", report["end_to_end"])),
        ("card", _timeline(report)),
        *(("card", _distribution(m["label"], m["times"])) for m in _other_modes(report)),
        ("card", _modalities(report)),
        ("card", _modes(report)),
        ("wide", _stages(report)),
        ("wide long", _layers(report)),
        ("card", _front(kept.get("search"))),
        ("card", _missing(kept.get("modalities"))),
        ("card", _titled("Resources", facts(report.get("resources")))),
        ("card", _conditions(report)),
    )
    sections = "".join(f'<section class="{kind}">{text}</section>' for kind, text in cards if text)
    parts = (
        _header(report),
        _warnings(report),
        _tiles(report),
        f'<div class="cards">{sections}</div>',
        _footer(report),
    )
    template = Template(files("edgemm.profiling").joinpath("page.html").read_text(encoding="utf-8"))
    title = escape(f"{Path(report['file']).name}: latency")
    return template.substitute(title=title, body="\n".join(parts), data=script_json(report))


def _titled(title: str, text: str) -> str:
    return f"<h2>{escape(title)}</h2>{text}" if text else ""


def _header(report: Mapping[str, Any]) -> str:
    number_of = report["threads"]
    threads = f"{number_of} thread{'s' if number_of > 1 else ''}" if number_of else "threads as the backend likes"
    backend = f"{report['backend']} {report['backend_version'] or ''}".strip()
    parts = [report["variant"], f"target {report['target']}", backend, threads, f"batch {report['batch']}"]
    random = report["inputs"] == "random"
    inputs = "random inputs" if random else f"{report['samples']:,} samples of {report['inputs']}"
    runs = f"{report['runs']:,} runs after {report['warmup']:,} to warm up · {inputs}"
    told = notes([" · ".join(parts), report["machine_summary"], runs])
    return f"<header><h1>{escape(Path(report['file']).name)}</h1>{told}</header>"


def _warnings(report: Mapping[str, Any]) -> str:
    said = list(report.get("warnings", ()))
    if report.get("instead_of"):
        said.insert(0, f"not the times of this variant, which is for {report['instead_of']}")
    items = "".join(f"<li>{escape(text)}</li>" for text in said)
    return f'<section class="notes" role="note"><ul>{items}</ul></section>' if items else ""


def _tiles(report: Mapping[str, Any]) -> str:
    times = report["end_to_end"]
    tiles = [_percentile_tile(times, name) for name in SHOWN]
    tiles.append(_tile("samples per second", f"{report['samples_per_second']:,.0f}", "back to back"))
    before = f"{report['baseline_memory_mb']:.0f} MB before loading"
    tiles.append(_tile("peak memory", f"{report['peak_memory_mb']:.0f}", before, "MB"))
    energy = report.get("resources", {}).get("energy")
    if energy is not None and "unavailable" not in energy:
        tiles.append(_tile("energy", number(energy["per_inference_mj"]), "per inference", "mJ"))
    load = f"after {report['load_ms']:.0f} ms to load"
    tiles.append(_tile("first call", number(report["first_call_ms"]), load, "ms"))
    return f'<div class="tiles">{"".join(tiles)}</div>'


def _percentile_tile(times: Mapping[str, Any], name: str) -> str:
    value = times.get(_key(name))
    if value is None:
        return _tile(
            name, f"needs {times['needs'].get(name, 0):,} runs", f"got {times['runs']:,}", kind="tile none"
        )
    interval = times.get("intervals", {}).get(name)
    told = (
        f"95\u00a0%: {number(interval[0])} to {number(interval[1])}" if interval else f"of {times['runs']:,} runs"
    )
    return _tile(name, number(value), told, "ms")


def _tile(name: str, value: str, told: str, unit: str = "", *, kind: str = "tile") -> str:
    small = f" <small>{unit}</small>" if unit else ""
    return (
        f'<div class="{kind}"><span class="soft">{escape(name)}</span>'
        f'<b>{escape(value)}{small}</b><span class="soft">{escape(told)}</span></div>'
    )


def _budget(report: Mapping[str, Any]) -> str:
    rows = []
    for row in report.get("budget", ()):
        got = row["why"] if row["got"] is None else f"{row['got']:.4g} {row['unit']}"
        mark = "kept" if row["kept"] else "broken" if row["got"] is not None else "not kept"
        kind = "kept" if row["kept"] else "broken"
        rows.append([escape(row["limit"]), f'<span class="{kind}">{mark}</span>', escape(got)])
    return _titled("Budget", table(["limit", "", "got"], rows, long=(2,)) if rows else "")


def _distribution(label: str, times: Mapping[str, Any]) -> str:
    if not times.get("histogram", {}).get("counts"):
        return ""
    marks = {name: times[_key(name)] for name in SHOWN if times.get(_key(name)) is not None}
    marks["max"] = times["max_ms"]
    keys = "".join(f'<span><i class="{css_class(n)}"></i>{n} {number(v)} ms</span>' for n, v in marks.items())
    chart = histogram(times["histogram"], marks)
    note = notes([f"{times['runs']:,} runs by milliseconds, on a logarithmic axis."])
    return _titled(f"Latency, {label}", f'{chart}<div class="keys">{keys}</div>{note}')


def _other_modes(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [mode for mode in report.get("modes", ()) if mode["mode"] != BACK_TO_BACK]


def _timeline(report: Mapping[str, Any]) -> str:
    spans = report.get("timeline")
    if not spans:
        return ""
    critical = set(report.get("critical_path", ()))
    end = max(s["start_ms"] + s["duration_ms"] for s in spans) or 1.0
    rows = []
    for span in spans:
        place = f"margin-left:{span['start_ms'] / end:.3%};width:{span['duration_ms'] / end:.3%}"
        told = f"{number(span['duration_ms'])} ms from {number(span['start_ms'])}"
        rows.append(bar(span["engine"], told, place, critical=span["engine"] in critical))
    note = f"{number(end)} ms in all" + ("; blue is the critical path" if critical else "")
    return _titled("One inference, the median one", "".join(rows) + notes([note]))


def _modalities(report: Mapping[str, Any]) -> str:
    rows = [
        bar(
            entry["name"],
            f"{entry['share']:.0%} · {number(entry['p50_ms'])} ms",
            f"width:{min(entry['share'], 1):.3%}",
            critical=entry["on_critical_path"],
        )
        for entry in report.get("modalities", ())
    ]
    note = notes(["Share of the engines' time; blue is on the critical path."])
    return _titled("By modality", "".join(rows) + note if rows else "")


def _modes(report: Mapping[str, Any]) -> str:
    modes = report.get("modes", ())
    if len(modes) < 2:
        return ""
    rows, told = [], []
    for mode in modes:
        rows.append([escape(mode["label"]), *_percentiles(mode["times"], SHOWN[:3])])
        if "missed" in mode:
            rates = ", ".join(f"{name} {rate:g} Hz" for name, rate in mode["rate_hz"].items())
            told.append(
                f"{mode['label']}: {rates}; {mode['missed']:,} of {mode['deadlines']:,} deadlines missed, "
                f"jitter {number(mode['jitter_ms'])} ms"
            )
        if mode.get("comparable") is False:
            told.append(f"{mode['label']}: not every engine runs; not comparable with the other modes")
    return _titled("Modes", table(["ms", *SHOWN[:3], "max"], rows, right=(1, 2, 3, 4)) + notes(told))


def _stages(report: Mapping[str, Any]) -> str:
    rows = []
    for stage in (*report["stages"], {**report["end_to_end"], "name": "end to end", "stages": []}):
        inside = ", ".join(stage["stages"]) if len(stage["stages"]) > 1 else ""
        name = escape(stage["name"]) + (f' <span class="soft">{escape(inside)}</span>' if inside else "")
        rows.append([name, *_percentiles(stage, SHOWN), f"{stage['share']:.0%}" if "share" in stage else ""])
    columns = ["ms", *SHOWN, "max", "share"]
    return _titled("Engines", table(columns, rows, right=tuple(range(1, len(columns))), long=(0,)))


def _percentiles(times: Mapping[str, Any], names: Sequence[str]) -> list[str]:
    """Returns cells of percentiles, and of the maximum."""
    cells = []
    for name in names:
        value, needs = times.get(_key(name)), times.get("needs", {}).get(name)
        cells.append(
            number(value) if value is not None or not needs else f'<span class="soft">needs {needs:,}</span>'
        )
    return [*cells, number(times["max_ms"])]


def _layers(report: Mapping[str, Any]) -> str:
    layers = report.get("layers")
    if not layers:
        return ""
    rows: list[list[Cell]] = [
        [
            escape(layer["name"]),
            escape(layer["op"]),
            escape(layer["stage"]),
            "" if layer.get("module") is None else escape(layer["module"]) or "(forward)",
            (number(layer["p50_ms"]), layer["p50_ms"]),
            (f"{layer['share']:.1%}", layer["share"]),
            (short(layer.get("flops")), layer.get("flops")),
            (short(layer.get("bytes")), layer.get("bytes")),
            escape(layer.get("bound") or ""),
        ]
        for layer in layers
    ]
    columns = ["layer", "op", "stage", "module", "p50 ms", "share", "FLOPs", "bytes", "bound by"]
    search = (
        '<input type="search" id="layer-search" placeholder="name, op, stage, module" aria-label="search layers"> '
        '<span class="soft" id="layer-count"></span>'
    )
    told = [report["profiled"]["label"]] if "profiled" in report else []
    roof = report.get("roofline", {})
    if "compute_bound_share" in roof:
        compute, memory = roof["compute_bound_share"], roof["memory_bound_share"]
        told.append(
            f"bound by arithmetic for {compute:.0%} of the time, by memory for {memory:.0%}: {roof['label']}"
        )
    shown = table(columns, rows, right=(4, 5, 6, 7), long=(0, 3), search="layer")
    return _titled("Layers", search + shown + notes(told))


_KINDS = {"ships": "ships", "fits": "within the budget", "over": "over the budget"}


def _front(search: Mapping[str, Any] | None) -> str:
    points = []
    for point in search["points"] if search is not None else ():
        lost = [point["drop"], *point["blank"].values()]
        if point["expected"] is None or any(value is None for value in lost):
            continue
        kind = "ships" if point["chosen"] else "fits" if point["fits"] else "over"
        title = f"{point['expected']:.4g}, loss {max(lost):.4g}: {_KINDS[kind]}"
        points.append({"x": point["expected"], "y": max(lost), "kind": kind, "title": title})
    if search is None or not points:
        return ""
    there = {point["kind"] for point in points}
    keys = "".join(f'<span><i class="dot {k}"></i>{text}</span>' for k, text in _KINDS.items() if k in there)
    what = "size" if search["unit"] == "MB" else "latency"
    chart = scatter(points, search["budget"], f"{what} in {search['unit']}")
    told = f"Largest loss of the metric, complete or with a modality blank, by {what} ({search['unit']})."
    keys = f'<div class="keys">{keys}<span><i class="budget"></i>budget</span></div>'
    return _titled("Plans that were searched", chart + keys + notes([told]))


def _missing(modalities: Mapping[str, Any] | None) -> str:
    """Returns the score with every subset of the modalities and every fill."""
    if modalities is None:
        return ""
    form = "{:.2%}" if modalities["percent"] else "{:.4g}"
    sessions = modalities["sessions"]
    rows = []
    for row in modalities["rows"]:
        scores = [row["scores"][name] for name in sessions]
        told = ["-" if score is None else form.format(score) for score in scores]
        rows.append([escape(", ".join(row["missing"]) or "nothing"), escape(row["fill"] or ""), *told])
    columns = ["missing", "fill", *sessions]
    note = f"{modalities['metric']} on {modalities['samples']:,} samples"
    shown = table(columns, rows, right=tuple(range(2, len(columns))), long=(0,))
    return _titled("When a modality is missing", shown + notes([note]))


def _conditions(report: Mapping[str, Any]) -> str:
    keys = ("layout", "steady", "spread", "states", "reset_every", "dims", "scenario", "machine")
    return _titled("Conditions", facts({key: report.get(key) for key in keys}))


def _footer(report: Mapping[str, Any]) -> str:
    made = f"edgemm {report['edgemm']}" if "edgemm" in report else "edgemm"
    when = f" · {report['created']}" if "created" in report else ""
    told = f"{made}{when} · the whole report is in this page as JSON, in the element #report"
    return f"<footer>{escape(told)}</footer>"


def _key(percentile: str) -> str:
    return f"{percentile.replace('.', '_')}_ms"
