"""What `edgemm profile` measures besides latency: the time of every layer, and MLPerf's scenarios."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from edgemm.cli._options import AboveZero

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession
    from edgemm.runtime.session import SessionOptions
    from edgemm.tensors import Feed

F = TypeVar("F", bound=Callable[..., Any])

TOP = 10
"""Layers in the table where no number is given."""

_SCENARIOS = ("single-stream", "multi-stream", "offline", "server")

_OPTIONS = [
    click.option(
        "--layers",
        metavar="[N]",
        is_flag=False,
        flag_value=TOP,
        type=click.IntRange(min=1),
        help=f"Time every layer in a run of its own, too, and show the N slowest ({TOP} without a number) with "
        "their torch modules and what bounds them. --json has all.",
    ),
    click.option(
        "--scenario",
        type=click.Choice(_SCENARIOS),
        help="Run this scenario of MLPerf's LoadGen as well (the loadgen extra); no submission.",
    ),
    click.option(
        "--loadgen-logs",
        metavar="DIR",
        type=click.Path(path_type=Path),
        help="With --scenario: keep LoadGen's own logs in this folder.",
        show_default="thrown away",
    ),
    click.option(
        "--target-qps",
        metavar="N",
        type=AboveZero(),
        help="With --scenario server: queries per second.",
        show_default="half of what back-to-back calls reach",
    ),
    click.option(
        "--target-latency",
        metavar="MS",
        type=AboveZero(),
        help="With --scenario server: bound on the 99th percentile of latency, in milliseconds.",
        show_default="100",
    ),
]


def further_options(command: F) -> F:
    """Adds the options of this module to a command."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_further(options: Mapping[str, Any]) -> None:
    """Checks the options of this module before anything is measured.

    Raises:
        click.UsageError: An option that another one needs is missing.
        MissingExtraError: mlcommons-loadgen is needed and not installed.
    """
    from edgemm._optional import require

    if options["scenario"] is not None and options.get("compare") is not None:
        raise click.UsageError("--scenario is about one build; leave out --compare.")
    if options["loadgen_logs"] is not None and options["scenario"] is None:
        raise click.UsageError("--loadgen-logs is for --scenario.")
    for name in ("target_qps", "target_latency"):
        if options[name] is not None and options["scenario"] != "server":
            raise click.UsageError(f"--{name.replace('_', '-')} is for --scenario server.")
    if options["scenario"] is not None:
        require("mlperf_loadgen", extra="loadgen", why="run an MLPerf scenario")


def further_measurements(
    file: Path,
    session: FusionSession,
    feeds: Sequence[Feed],
    singles: Callable[[], Sequence[Feed]],
    options: Mapping[str, Any],
    reopen: Callable[[SessionOptions], FusionSession],
) -> dict[str, Any]:
    """Returns the report's keys `layers`, `roofline`, `profiled` and `scenario`, as far as they were asked for.

    Args:
        file: What is profiled.
        session: That is open on it, nothing cached.
        feeds: What the latency was measured with.
        singles: Makes the same with one sample each.
        options: Of the command; of another one that has none of this, nothing is measured.
        reopen: Opens it again, as `session` was.

    Raises:
        EdgemmError: The model does not run so, or a backend does not tell the time of layers.
    """
    report: dict[str, Any] = {}
    if options.get("scenario") is not None:
        from edgemm.profiling.loadgen import SECONDS, Load, run_scenario

        load = Load(
            options["scenario"],
            seconds=options["seconds"] or (1.0 if options["runs"] else SECONDS),
            queries=options["runs"] or 100,
            batch=options["batch"] or 1,
            qps=options["target_qps"],
            latency_ms=options["target_latency"] or 100.0,
            logs=options["loadgen_logs"],
        )
        report["scenario"] = run_scenario(session, singles(), load)
    if options.get("layers") is not None:
        from edgemm.profiling.layers import RUNS, profile_layers

        report |= profile_layers(
            reopen,
            file if file.is_dir() else file.parent,
            feeds,
            runs=min(options["runs"] or RUNS, RUNS),
            threads=options["threads"] or 0,
        )
    return report


def render_further(report: Mapping[str, Any], top: int) -> list[str]:
    """Returns what this module has measured as lines for people; none where nothing was asked for."""
    lines = []
    if "layers" in report:
        lines += ["", *_layers(report, top)]
    if "scenario" in report:
        lines += ["", *_scenario(report["scenario"])]
    return lines


def _layers(report: Mapping[str, Any], top: int) -> list[str]:
    from edgemm.cli._output import count, milliseconds, table

    layers, profiled = report["layers"], report["profiled"]
    columns = ["layer", "ms", "share", "GFLOP/s", "of roof", "bound", "stage", "torch module"]
    rows = [
        [
            _shortened(layer["name"] if layer["op"] in layer["name"] else f"{layer['name']} ({layer['op']})"),
            milliseconds(layer["p50_ms"]),
            f"{layer['share']:.1%}",
            f"{layer['gflops']:.1f}" if layer["gflops"] is not None else "",
            f"{layer['of_roof']:.0%}" if layer["of_roof"] is not None else "",
            layer["bound"] or "",
            layer["stage"],
            "-" if layer["module"] is None else layer["module"] or "(forward)",
        ]
        for layer in layers[:top]
    ]
    shown = sum(layer["share"] for layer in layers[:top])
    mean = any(e.get("statistic") == "mean" for e in profiled["engines"])
    lines = [
        table(columns, rows, right=columns[1:5]),
        f"{min(top, len(layers))} of {count(len(layers), 'layer')}, {shown:.0%} of "
        f"{milliseconds(profiled['sum_ms'])} ms; {profiled['unmapped_share']:.1%} of it is mapped to no torch "
        "module",
        f"{profiled['label']}{'; OpenVINO tells means, not medians' if mean else ''}",
    ]
    lines += [
        f"no layers of '{e['name']}' ({e['backend']}): {e['unavailable']}"
        for e in profiled["engines"]
        if "unavailable" in e
    ]
    return [*lines, *_roofline(report["roofline"])]


def _roofline(roofline: Mapping[str, Any]) -> list[str]:
    from edgemm.cli._output import short

    lines = []
    seen: dict[str, list[str]] = {}
    for peak in roofline["peaks"]:
        text = peak.get("unavailable") or _peak(peak)
        seen.setdefault(text, []).append(peak["engine"])
    for text, engines in seen.items():
        lines.append(f"roofline of {', '.join(engines)}: {text}")
    lines.append(
        f"{short(roofline['flops'])} operations and at least {short(roofline['bytes'])} bytes per run; "
        f"{roofline['compute_bound_share']:.0%} of the time is bound by compute, "
        f"{roofline['memory_bound_share']:.0%} by memory (an estimate)"
    )
    return lines


def _peak(peak: Mapping[str, Any]) -> str:
    from edgemm.cli._output import count

    integer = f", {peak['int8_gflops']:,.0f} int8" if peak["int8_gflops"] is not None else ""
    threads = f" on {count(peak['threads'], 'thread')}" if peak["threads"] else ""
    return (
        f"{peak['float_gflops']:,.0f} GFLOP/s {peak['precision']}{integer}, {peak['bandwidth_gb_s']:.1f} GB/s, "
        f"{peak['label']} by {peak['backend']}{threads} ({peak['measured'][:10]})"
    )


def _shortened(text: str, width: int = 44) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _scenario(scenario: Mapping[str, Any]) -> list[str]:
    from edgemm.cli._output import milliseconds

    verdict = click.style("VALID", fg="green") if scenario["valid"] else click.style("INVALID", fg="red")
    result = f" {milliseconds(scenario['result_ms'])} ms" if scenario.get("result_ms") is not None else ""
    rate = f" · {scenario['qps']:,.1f} samples/s" if scenario["qps"] is not None else ""
    lines = [
        f"{scenario['tool']}, {scenario['scenario']}: {verdict} · {scenario['metric']}{result}{rate} · "
        f"{scenario['queries']:,} queries"
    ]
    if scenario["scenario"] == "server":
        met = "met" if scenario["latency_bound_met"] else "broken"
        lines.append(
            f"asked for {scenario['target_qps']:,.1f} queries/s; "
            f"p99 within {scenario['latency_bound_ms']:g} ms: {met}"
        )
    if not scenario["valid"]:
        lines.append(f"why: {scenario['reason'] or scenario['early_stopping'] or 'LoadGen gives no reason'}")
    if scenario["logs"]:
        lines.append(f"logs in {scenario['logs']}")
    return [*lines, scenario["label"]]
