"""The report of `edgemm profile` as text for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import click

PERCENTILES = ("p50", "p90", "p99", "p99.9")
"""Columns of the table; the JSON has more."""


def render(report: Mapping[str, Any]) -> str:
    """Returns the report as text."""
    threads = f"{report['threads']} threads" if report["threads"] else "threads as the backend likes"
    backend = f"{report['backend']} {report['backend_version'] or ''}".strip()
    lines = [
        f"{click.style(report['file'], bold=True)} · {report['variant']} · {backend} · {threads}",
        report["machine_summary"],
        _inputs(report),
    ]
    if report["instead_of"]:
        lines.append(f"not the times of this variant, which is for {report['instead_of']}: see `edgemm doctor`")
    lines += ["", _table(report), "", *_modes(report), *_breakdown(report), *_whole(report), *_resources(report)]
    return "\n".join([*lines, *report["warnings"]])


def _inputs(report: Mapping[str, Any]) -> str:
    runs = f"{report['runs']:,} runs after {report['warmup']} to warm up"
    parts = [f"batch {report['batch']}", runs, "back to back"]
    if report["inputs"] == "random":
        sizes = ", ".join(f"{n}={report['dims'][n]}" for n in report["assumed_dims"])
        assumed = f", with {sizes} assumed (set with --dim)" if sizes else ""
        parts.append(f"random inputs{assumed}")
    else:
        parts.append(f"{report['samples']:,} of {report['of_samples']:,} samples of {report['inputs']}")
    if report["states"]:
        shapes = ", ".join(f"{name} [{','.join(map(str, shape))}]" for name, shape in report["states"].items())
        until = f" for {report['reset_every']} runs" if report["reset_every"] else " between runs"
        parts.append(f"state kept{until}, in the end {shapes}")
    return " · ".join(parts)


def _table(report: Mapping[str, Any]) -> str:
    """Returns one row per engine, one for whole calls, and one per further mode."""
    from edgemm.cli._output import table

    rows = [_row(_stage_name(stage), stage) for stage in report["stages"]]
    rows.append(_row("end to end", report["end_to_end"]))
    rows += [_row(mode["label"], mode["times"]) for mode in report["modes"][1:]]
    columns = ["ms", *PERCENTILES, "max", "share"]
    return table(columns, rows, right=columns[1:])


def _stage_name(stage: Mapping[str, Any]) -> str:
    return stage["name"] if len(stage["stages"]) == 1 else f"{stage['name']} ({len(stage['stages'])} stages)"


def _row(name: str, times: Mapping[str, Any]) -> list[str]:
    """Returns a table row; a percentile that needs more runs says how many."""
    from edgemm.cli._output import milliseconds

    cells = [name]
    for key in PERCENTILES:
        value = times[f"{key.replace('.', '_')}_ms"]
        cells.append(milliseconds(value) if value is not None else f"needs {times['needs'][key]:,} runs")
    cells.append(milliseconds(times["max_ms"]))
    return [*cells, f"{times['share']:.0%}" if "share" in times else ""]


def _modes(report: Mapping[str, Any]) -> Iterator[str]:
    """Yields what one must know of the rows of further modes."""
    from edgemm.cli._output import milliseconds

    for mode in report["modes"][1:]:
        if mode["mode"] == "paced":
            rates = ", ".join(f"{name} {rate:g} Hz" for name, rate in mode["rate_hz"].items())
            yield (
                f"paced: {rates}, from the arrival of {mode['trigger']} to the output · {mode['missed']:,} of "
                f"{mode['deadlines']:,} deadlines of {mode['deadline_ms']:.3g} ms missed · "
                f"jitter {milliseconds(mode['jitter_ms'])} ms · woken {milliseconds(mode['wake_ms'])} ms late"
            )
        else:
            reused = f"{', '.join(mode['reused'])} not run" if mode["reused"] else "every engine ran"
            changed = " and ".join(mode["changed"])
            label = f"{mode['label']}: new in each call: {changed}"
            yield f"{label}; {reused}; not comparable with plain latency (MLPerf)"


def _breakdown(report: Mapping[str, Any]) -> Iterator[str]:
    from edgemm.cli._output import milliseconds

    if len(report["modalities"]) > 1:
        shares = " · ".join(f"{m['name']} {m['share']:.0%}" for m in report["modalities"])
        path = " → ".join(report["critical_path"])
        yield f"per modality: {shares} · critical path {path}, {milliseconds(report['critical_path_ms'])} ms"
    spread = report.get("spread")
    if spread is not None:
        between, within = (milliseconds(spread[f"{k}_ms"]) for k in ("between_samples", "within_sample"))
        told = "time depends on the input" if spread["input_dependent"] else "no dependence on the input"
        yield (
            f"{told}: {between} ms between samples, {within} ms within one ({spread['samples']} samples, "
            f"{spread['repeats']} times each)"
        )


def _whole(report: Mapping[str, Any]) -> Iterator[str]:
    from edgemm.cli._output import milliseconds

    intervals = report["end_to_end"]["intervals"]
    if intervals:
        told = (f"{name} {milliseconds(low)} to {milliseconds(high)}" for name, (low, high) in intervals.items())
        yield f"95 % intervals end to end: {' · '.join(told)} ms"
    inside, outside = report["sum_of_stages_p50_ms"], report["overhead_p50_ms"]
    rest = (
        "preprocessing on the host and what lies between them take"
        if report.get("host_steps")
        else "between them edgemm takes"
    )
    yield f"stages sum to {milliseconds(inside)} ms; {rest} {outside * 1e3:.1f} µs per run"
    yield (
        f"load {report['load_ms']:.0f} ms (with the import of {report['backend']}) · "
        f"first call {report['first_call_ms']:.1f} ms · {report['samples_per_second']:,.0f} samples/s"
    )
    yield f"peak memory {report['peak_memory_mb']:.0f} MB ({report['baseline_memory_mb']:.0f} MB before loading)"


def _resources(report: Mapping[str, Any]) -> Iterator[str]:
    resources = report["resources"]
    device = resources["memory"]["device"]
    if "unavailable" not in device:
        used = device["used_mb"] - device["before_mb"]
        yield f"memory of {device['device']} {used:.0f} MB more than before, of {device['total_mb']:,.0f} MB"
    energy = resources.get("energy")
    if energy is not None:
        yield _energy(energy)
    clocks, heat = resources["clocks"], resources["temperature"]
    parts = []
    if "unavailable" not in clocks["power_mode"]:
        parts.append(f"power mode {clocks['power_mode']['name']}")
    if clocks["locked"] is not None:
        parts.append("clocks locked" if clocks["locked"] else "clocks not locked")
    if "unavailable" not in heat:
        parts.append(f"hottest zone {heat['hottest_c']:.0f} °C")
    if parts:
        yield " · ".join(parts)


def _energy(energy: Mapping[str, Any]) -> str:
    if "unavailable" in energy:
        return f"energy unavailable: {energy['unavailable']}"
    sources = ", ".join(source["name"] for source in energy["sources"])
    idle = f", {energy['idle_watts']:.1f} W idle" if "idle_watts" in energy else ""
    text = f"energy {energy['per_inference_mj']:.3g} mJ per run ({sources}: {energy['watts']:.1f} W{idle})"
    if "modalities" in energy:
        shares = " · ".join(f"{m['name']} {m['estimate_mj']:.3g}" for m in energy["modalities"])
        text += f"; by share of time, an estimate: {shares}"
    return text
