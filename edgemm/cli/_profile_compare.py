"""`edgemm profile A --compare B`: what B is, what is measured of both, and the comparison as text."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.profiling.fail_if import Condition
    from edgemm.runtime.fusion import FusionSession
    from edgemm.runtime.latency import Ratio

DEFAULT_SECONDS = 6.0
_SHOWN = 8


def compare_files(file: Path, options: Mapping[str, Any], conditions: Sequence[Condition]) -> dict[str, Any]:
    """Returns the comparison of A, `file`, with B, `options["compare"]`, as plain JSON values.

    Args:
        file: A bundle or an ONNX file.
        options: Those of the command.
        conditions: What makes it fail.

    Raises:
        EdgemmError: One does not open, the data does not fit, or B is no report.
    """
    from edgemm.cli._options import path_and_variant
    from edgemm.profiling.compare import KIND, SCHEMA, THRESHOLD, THRESHOLD_MS, culprit, verdict
    from edgemm.profiling.fail_if import check_conditions
    from edgemm.runtime.machine import describe_machine

    machine = describe_machine()
    path, variant = path_and_variant(options["compare"], None)
    saved = path.suffix == ".json" and path.is_file()
    builds: _Builds = ((file, options), (path, {**options, "variant": variant}))
    accuracy = None if saved else _accuracy(builds)
    if saved:
        sides, found, rows, memory, more = _against_saved(file, path, options)
    else:
        sides, found, rows, memory, more = _against_build(builds)
    threshold = more.pop("threshold", THRESHOLD)
    medians = [sides[name]["end_to_end"]["p50_ms"] for name in ("a", "b")]
    result = None if more["no_verdict"] else verdict(found, medians[0], medians[1], threshold)
    comparison = {
        "schema": SCHEMA,
        "kind": KIND,
        **sides,
        "machine": machine.to_json(),
        "machine_summary": machine.summary(),
        **more,
        "interleaved": not saved,
        "threshold": threshold,
        "threshold_ms": THRESHOLD_MS,
        "ratio": found.to_json(),
        "verdict": result,
        "stages": rows,
        "mostly": culprit(rows, result),
        "memory": memory,
        "accuracy": accuracy,
    }
    return comparison | {"fail_if": check_conditions(conditions, comparison)}


_Builds = tuple[tuple[Path, Mapping[str, Any]], tuple[Path, Mapping[str, Any]]]
"""A and B: file, and the options of the command with the variant of that file."""

_Compared = tuple[dict[str, Any], "Ratio", list[dict[str, Any]], dict[str, Any], dict[str, Any]]


def _against_build(builds: _Builds) -> _Compared:
    from edgemm.cli._profile_run import make_feeds, open_file
    from edgemm.profiling.compare import WARMUP, compare_stages, measure_pair, pooled_ratio

    (file, options), (other, _) = builds
    said: dict[str, Any] = {}
    kept: list[Any] = []

    def feeds(session: FusionSession) -> list[Any]:
        made, told = make_feeds(session, options)
        said.update(told)
        kept.extend(made)
        return made

    a, b = measure_pair(
        (partial(open_file, *builds[0]), partial(open_file, *builds[1])),
        feeds,
        runs=options["runs"],
        seconds=options["seconds"] or (None if options["runs"] else DEFAULT_SECONDS),
        reset_every=options["reset_every"],
        warmup=WARMUP if options["warmup"] is None else options["warmup"],
    )
    sides = {"a": {"file": str(file), **a.to_json()}, "b": {"file": str(other), **b.to_json()}}
    memory = _memory(builds)
    more = {
        **said,
        "threads": options["threads"],
        "openings": len(a.totals),
        "runs": sum(t.runs for t in a.totals),
    }
    if options.get("layers"):
        more["layers"] = _compare_layers(builds, kept)
    more |= {"warnings": [], "no_verdict": []}
    return sides, pooled_ratio(a.totals, b.totals), compare_stages(a, b), memory, more


def _against_saved(file: Path, saved: Path, options: Mapping[str, Any]) -> _Compared:
    from edgemm.cli._profile_run import measure_file
    from edgemm.profiling.report import read_report
    from edgemm.profiling.saved import (
        THRESHOLD,
        compare_layers,
        compare_reports,
        different_conditions,
        warnings_of_saved,
    )

    b: Mapping[str, Any] = read_report(saved)
    a = measure_file(file, options).report
    found, rows = compare_reports(a, b)
    keys = ("file", "variant", "target", "layout", "backend", "load_ms", "end_to_end")
    sides = {name: {key: report[key] for key in keys} for name, report in (("a", a), ("b", b))}
    sides["b"]["report"] = str(saved)
    memory = {"a_mb": a["peak_memory_mb"], "b_mb": b["peak_memory_mb"]}
    said = {key: a.get(key) for key in ("inputs", "samples", "of_samples", "batch", "dims", "threads", "runs")}
    layers = {"layers": compare_layers(a["layers"], b["layers"])} if "layers" in a and "layers" in b else {}
    judged = {
        "threshold": THRESHOLD,
        "no_verdict": different_conditions(a, b),
        "warnings": warnings_of_saved(a, b),
    }
    return sides, found, rows, memory, {**said, **layers, "openings": 1, **judged}


def _compare_layers(builds: _Builds, feeds: Sequence[Any]) -> list[dict[str, Any]]:
    """Returns what each module, or each layer, takes in both, from runs of their own under the profilers."""
    from edgemm.cli._profile_run import open_file
    from edgemm.profiling.layers import profile_layers
    from edgemm.profiling.saved import compare_layers

    found = [
        profile_layers(
            partial(open_file, file, options, "off"),
            file if file.is_dir() else file.parent,
            feeds,
            threads=options["threads"] or 0,
        )["layers"]
        for file, options in builds
    ]
    return compare_layers(*found)


def _memory(builds: _Builds) -> dict[str, Any]:
    """Returns the peak memory of both in MiB, each in a process of its own that makes a few calls."""
    found: dict[str, Any] = {}
    for side, (file, options) in zip("ab", builds, strict=True):
        command = [sys.executable, "-m", "edgemm", "profile", str(file), "--runs", "3", "--warmup", "3", "--json"]
        for name in ("data", "batch", "target", "threads", "reset_every", "variant"):
            command += [] if options[name] is None else [f"--{name.replace('_', '-')}", str(options[name])]
        for text in options["dims"]:
            command += ["--dim", text]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = (done.stderr.strip() or "no message").splitlines()[0]
            return {"unavailable": f"a process of its own for {file} failed: {last}"}
        report = json.loads(done.stdout)
        found |= {f"{side}_mb": report["peak_memory_mb"], f"{side}_baseline_mb": report["baseline_memory_mb"]}
    return found


def _accuracy(builds: _Builds) -> dict[str, Any] | None:
    """Returns the score of both on the data and its drop from B to A; None without a label and a metric.

    Raises:
        DataError: No such metric, label or output, or the labels do not fit.
    """
    options = builds[0][1]
    label = options["label"]
    if label is None and options["metric"] is None:
        return None
    from edgemm.cli._profile_run import open_file
    from edgemm.data import names_of, open_samples
    from edgemm.errors import DataError, did_you_mean
    from edgemm.metrics import choose_output, collect_labels, collect_outputs, metric_for, score

    samples = open_samples(options["data"])
    if label is not None and label not in names_of(samples):
        known = names_of(samples)
        raise DataError(
            f"{samples.origin}: there is no array '{label}' (arrays: {', '.join(known)}).",
            hint=did_you_mean(label, known, "--label names the array of the labels"),
        )
    chosen = metric_for(options["metric"], samples, label)
    outputs = []
    for file, own in builds:
        with open_file(file, own) as session:
            output = choose_output(session.io, options["output_name"])
            outputs.append(collect_outputs(session.run, session.io, samples, reset=session.reset_state))
    labels = collect_labels(samples, label) if label is not None else None
    a, b = (score(chosen, found, output, labels=labels, reference=outputs[1]) for found in outputs)
    drop = chosen.drop(b, a)
    return {
        "metric": chosen.name.rsplit("/", 1)[-1],
        "output": output,
        "percent": chosen.percent,
        "samples": len(samples),
        "a": a if math.isfinite(a) else None,
        "b": b if math.isfinite(b) else None,
        "drop": drop if math.isfinite(drop) else None,
    }


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """Returns a comparison as text for people."""
    from edgemm.cli._output import table

    a, b = comparison["a"], comparison["b"]
    lines = [f"A {_side(a)}", f"B {_side(b)}", comparison["machine_summary"], _conditions(comparison), ""]
    total = {
        "name": "end to end",
        "a_p50_ms": a["end_to_end"]["p50_ms"],
        "b_p50_ms": b["end_to_end"]["p50_ms"],
        "ratio": comparison["ratio"],
        "verdict": comparison["verdict"],
    }
    rows = [_row(row) for row in (*comparison["stages"], total)]
    columns = ["p50 in ms", "A", "B", "A / B", "95 %", ""]
    lines += [table(columns, rows, right=columns[1:5]), ""]
    if comparison.get("layers"):
        lines += [_layers(comparison["layers"]), ""]
    lines += [*_memory_and_accuracy(comparison), _verdict(comparison)]
    for failed in comparison["fail_if"]:
        mark = click.style("fails", fg="red") if failed["fails"] else "holds"
        lines.append(f"--fail-if {failed['condition']}: {mark}, {failed['why']}")
    return "\n".join(lines)


def _side(side: Mapping[str, Any]) -> str:
    report = f" · saved in {side['report']}" if "report" in side else ""
    rest = " · ".join(side[key] for key in ("variant", "backend", "layout"))
    return f"{click.style(side['file'], bold=True)} · {rest}{report}"


def _conditions(comparison: Mapping[str, Any]) -> str:
    runs = f"{comparison['runs']:,} runs"
    if comparison["interleaved"]:
        times = "once" if comparison["openings"] == 1 else f"{comparison['openings']} times"
        runs += f" of each, interleaved, both opened {times}"
    inputs = "random inputs" if comparison["inputs"] == "random" else f"samples of {comparison['inputs']}"
    return f"batch {comparison['batch']} · {runs} · {inputs}"


def _row(row: Mapping[str, Any]) -> list[str]:
    from edgemm.cli._output import milliseconds

    cells = [row["name"], milliseconds(row["a_p50_ms"]), milliseconds(row["b_p50_ms"])]
    found = row.get("ratio")
    if found is None:
        return [*cells, "-", "", "" if "difference_ms" in row else "only in one of them"]
    span = f"{found['low']:.3f} to {found['high']:.3f}"
    return [*cells, f"{found['value']:.3f}", span, row["verdict"] or "no verdict"]


def _layers(rows: Sequence[Mapping[str, Any]]) -> str:
    from edgemm.cli._output import milliseconds, table

    both = sorted((r for r in rows if "difference_ms" in r), key=lambda r: -abs(r["difference_ms"]))
    cells = [
        [r["name"], r["op"], *(milliseconds(r[k]) for k in ("a_p50_ms", "b_p50_ms")), f"{r['difference_ms']:+.3f}"]
        for r in both[:_SHOWN]
    ]
    only = len(rows) - len(both)
    text = table(["module or layer, p50 in ms", "op", "A", "B", "A - B"], cells, right=["A", "B", "A - B"])
    return f"{text}\n{only:,} layers are in one of them only" if only else text


def _memory_and_accuracy(comparison: Mapping[str, Any]) -> list[str]:
    from edgemm.profiling.fail_if import describe_drop

    memory, accuracy = comparison["memory"], comparison["accuracy"]
    if "unavailable" in memory:
        lines = [f"peak memory unavailable: {memory['unavailable']}"]
    else:
        own, other = memory["a_mb"], memory["b_mb"]
        lines = [f"peak memory A {own:.0f} MB, B {other:.0f} MB ({own / other - 1:+.1%})"]
    if accuracy is not None:
        form = "{:.2%}" if accuracy["percent"] else "{:.5g}"
        a, b = ("no number" if accuracy[k] is None else form.format(accuracy[k]) for k in ("a", "b"))
        drop, samples = describe_drop(accuracy), accuracy["samples"]
        lines.append(f"{accuracy['metric']} A {a}, B {b}: {drop} on {samples:,} samples")
    return lines


def _verdict(comparison: Mapping[str, Any]) -> str:
    found = comparison["ratio"]
    span = f"{found['low'] - 1:+.1%} to {found['high'] - 1:+.1%}"
    if comparison["no_verdict"]:
        return f"{click.style('no verdict', bold=True)}: {'; '.join(comparison['no_verdict'])}"
    if comparison["verdict"] == "no difference":
        change = found["value"] - 1
        more = "less" if change < 0 else "more"
        least = f"{comparison['threshold']:.0%} and {comparison['threshold_ms'] * 1e3:g} µs"
        return (
            f"{click.style('no difference', bold=True)}: A takes {abs(change):.1%} {more} time than B "
            f"(95 % interval: {span}). A difference counts when it is over {least}, and the interval excludes 0"
        )
    mostly = f"; most of it in '{comparison['mostly']}'" if comparison["mostly"] is not None else ""
    result = click.style(comparison["verdict"], bold=True)
    return f"A is {result}: it takes {found['value'] - 1:+.1%} ({span}){mostly}"
