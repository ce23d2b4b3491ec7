"""`edgemm profile`: how long a bundle or an ONNX file takes here, stage by stage."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.runtime.fusion import FusionSession
    from edgemm.tensors import Feed

EPILOG = """\b
Examples:
  edgemm profile model.edgemm
  edgemm profile model.edgemm --data eval.npz --runs 2000
  edgemm profile model.onnx --batch 8 --threads 1 --json
"""

DEFAULT_SECONDS = 3.0
WARMUP = 20


@click.command(epilog=EPILOG, short_help="Measure latency, per stage and end to end.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="PATH",
    help="Samples to run, over and over: .npz, a folder of .npz shards, or FILE.py:CLASS.",
    show_default="random numbers",
)
@click.option(
    "--runs",
    metavar="N",
    type=click.IntRange(min=1),
    help="Number of measured runs.",
    show_default="as many as fit into --seconds",
)
@click.option(
    "--seconds",
    metavar="S",
    type=click.FloatRange(min=0, min_open=True),
    help="How long to measure, in seconds.",
    show_default="3, without --runs",
)
@click.option(
    "--batch",
    metavar="N",
    type=click.IntRange(min=1),
    help="Samples per run.",
    show_default="1, or the model's own",
)
@click.option(
    "--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a dynamic dimension without --data."
)
@click.option(
    "--reset-every",
    metavar="N",
    type=click.IntRange(min=1),
    help="Forget the kept states before every N-th run.",
    show_default="never",
)
@click.option(
    "--target", metavar="NAME", default="auto", show_default=True, help="Target to run, of those in the bundle."
)
@click.option("--variant", metavar="NAME", help="Variant to run.", show_default="the first of the target")
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads per operator.",
    show_default="the backend's choice",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def profile(file: Path, as_json: bool, **options: Any) -> None:
    """Measure how long FILE takes on this machine, per stage and end to end.

    FILE is a bundle or an .onnx file. Runs follow each other without a pause, after 20 that are not counted.
    A percentile is shown only when there are enough runs for it. A state is kept from run to run; one that grows
    (a key-value cache) makes later runs slower, and --reset-every holds it short.
    """
    from edgemm.cli._output import echo_json

    if options["runs"] and options["seconds"]:
        raise click.UsageError("give --runs or --seconds, not both.")
    report = measure_file(file, options)
    if as_json:
        echo_json(report)
    else:
        click.echo(render(report))


def measure_file(file: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns every measurement of one profile as plain JSON values (times in milliseconds).

    Args:
        file: A bundle or an ONNX file.
        options: `data`, `runs`, `seconds`, `batch`, `dims`, `reset_every`, `target`, `variant`, `threads`: see
            the command.

    Raises:
        EdgemmError: The file does not open, or the data does not fit it.
    """
    from time import perf_counter

    from edgemm.runtime import open_session
    from edgemm.runtime.latency import peak_memory
    from edgemm.runtime.machine import describe_machine

    baseline = _resident_bytes()
    start = perf_counter()
    session = open_session(
        file, target=options["target"], threads=options["threads"], variant=options["variant"], cache="off"
    )
    load = perf_counter() - start
    with session:
        feeds, given = _feeds(session, options)
        start = perf_counter()
        session.run(feeds[0])
        first = perf_counter() - start
        if sys.stderr.isatty():
            click.echo(f"measuring {file} ...", err=True)
        times = _measure(session, feeds, options)
        choice = session.choice
        runs_on = choice.backend if choice is not None else session.variant.backend
        return {
            "file": str(file),
            "variant": session.variant.name,
            "target": session.variant.target,
            "layout": session.variant.layout,
            "backend": runs_on,
            "backend_version": getattr(sys.modules.get(_package(runs_on, session)), "__version__", None),
            "choice": choice and choice.to_json(),
            "instead_of": _instead_of(session),
            "threads": options["threads"],
            "machine": describe_machine().to_json(),
            "machine_summary": describe_machine().summary(),
            **given,
            "states": {name: list(value.shape) for name, value in session.state.items()},
            "reset_every": options["reset_every"],
            "warmup": WARMUP,
            "load_ms": load * 1e3,
            "first_call_ms": first * 1e3,
            **times,
            "peak_memory_mb": peak_memory() / 2**20,
            "baseline_memory_mb": baseline / 2**20,
        }


def _package(backend: str, session: FusionSession) -> str:
    """Returns the import name of what runs a session."""
    if backend.startswith("ort-"):
        return "onnxruntime"
    modules = {str(e.options["module"]) for e in session.variant.engines if "module" in e.options}
    return modules.pop() if backend == "tensorrt" and len(modules) == 1 else backend


def _instead_of(session: FusionSession) -> str | None:
    """Returns what the variant was made for, where something else runs it: its times say nothing of that."""
    choice, variant = session.choice, session.variant
    if choice is None or choice.backend == variant.backend:
        return None
    return f"{variant.backend} on {variant.target}"


def _feeds(session: FusionSession, options: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Returns the feeds to cycle over, and what to say of them."""
    from edgemm.cli._feeds import check_batch, chosen_sizes, data_feeds
    from edgemm.data import checked_sizes, open_samples, random_feed

    io = session.io
    sizes = dict(_dimension(text) for text in options["dims"])
    if io.batch in sizes:
        raise click.UsageError(f"--dim {io.batch}: this is the batch; set it with --batch.")
    batch = options["batch"] or (io.batch if isinstance(io.batch, int) else 1)
    if batch != io.batch:
        check_batch(io, batch)
    if options["data"] is None:
        known = chosen_sizes(io, batch, sizes, checked_sizes(session.manifest.info.get("dynamic", {})))
        feed = random_feed(io, known, batch=batch)
        assumed = [n for n in known if n not in sizes and n != io.batch]
        return [feed], {"inputs": "random", "samples": 0, "batch": batch, "dims": known, "assumed_dims": assumed}
    if sizes:
        raise click.UsageError("--dim is for random inputs; with --data the data has the sizes.")
    samples = open_samples(options["data"])
    feeds = data_feeds(io, samples, batch)
    used = min(len(feeds) * batch, len(samples))
    said = {"inputs": options["data"], "samples": used, "of_samples": len(samples), "batch": batch}
    return feeds, {**said, "dims": None, "assumed_dims": []}


def _dimension(text: str) -> tuple[str, int]:
    name, _, size = text.partition("=")
    if not name or not size.isdigit() or int(size) < 1:
        raise click.BadParameter(f"got '{text}', expected NAME=SIZE with a size of 1 or more.", param_hint="--dim")
    return name, int(size)


def _measure(session: FusionSession, feeds: list[Feed], options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the latencies of whole calls and of every engine inside the same calls."""
    import numpy as np

    from edgemm.runtime.latency import Latencies, measure

    call, parts = _recorder(session, feeds, options["reset_every"] or 0)
    seconds = options["seconds"] or (None if options["runs"] else DEFAULT_SECONDS)
    total = measure({"total": call}, runs=options["runs"], seconds=seconds, warmup=WARMUP)["total"]
    engines = {name: Latencies(np.array(values[-total.runs :])) for name, values in parts.items()}
    inside = np.sum([e.seconds for e in engines.values()], axis=0)
    mean = float(total.seconds.mean())
    entries = {e.name: e for e in session.variant.engines}
    return {
        "runs": total.runs,
        "end_to_end": total.to_json(),
        "stages": [
            {
                "name": name,
                "stages": list(entries[name].stages),
                "share": float(latency.seconds.mean()) / mean,
                **latency.to_json(),
            }
            for name, latency in engines.items()
        ],
        "sum_of_stages_p50_ms": float(np.median(inside)) * 1e3,
        "overhead_p50_ms": float(np.median(total.seconds - inside)) * 1e3,
        "samples_per_second": _feed_size(session, feeds) / mean,
    }


def _recorder(
    session: FusionSession, feeds: list[Feed], reset_every: int
) -> tuple[Callable[[], None], dict[str, list[float]]]:
    """Returns a call that runs the next feed and keeps the seconds of each engine, and where they are kept."""
    parts: dict[str, list[float]] = {entry.name: [] for entry in session.variant.engines}
    keep = [(name, values.append) for name, values in parts.items()]
    at, last, since = 0, len(feeds) - 1, 0

    def call() -> None:
        nonlocal at, since
        if reset_every and (since := since + 1) >= reset_every:
            session.reset_state()
            since = 0
        _, seconds = session.run_timed(feeds[at])
        for name, append in keep:
            append(seconds[name])
        at = at + 1 if at < last else 0

    return call, parts


def _feed_size(session: FusionSession, feeds: list[Feed]) -> int:
    """Returns how many samples one call has."""
    io = session.io
    for spec in io.feed_inputs:
        if io.batch is not None and spec.shape[:1] == (io.batch,):
            return int(feeds[0][spec.name].shape[0])
    return 1


def _resident_bytes() -> int:
    """Returns the memory that this process holds now; 0 where the kernel does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return 0
    import resource

    return pages * resource.getpagesize()


def render(report: Mapping[str, Any]) -> str:
    """Returns the report as text for people."""
    from edgemm.cli._output import milliseconds, table

    threads = f"{report['threads']} threads" if report["threads"] else "threads as the backend likes"
    backend = f"{report['backend']} {report['backend_version'] or ''}".strip()
    lines = [
        f"{click.style(report['file'], bold=True)} · {report['variant']} · {backend} · {threads}",
        report["machine_summary"],
        _inputs(report),
    ]
    if report["instead_of"]:
        lines.append(f"not the times of this variant, which is for {report['instead_of']}: see `edgemm doctor`")
    lines.append("")
    names = [_stage_name(stage) for stage in report["stages"]]
    rows = [_row(name, stage) for name, stage in zip(names, report["stages"], strict=True)]
    rows.append(_row("end to end", report["end_to_end"]))
    columns = ["ms", "p50", "p90", "p99", "p99.9", "max", "share"]
    lines += [table(columns, rows, right=columns[1:]), ""]
    inside, outside = report["sum_of_stages_p50_ms"], report["overhead_p50_ms"]
    lines += [
        f"stages sum to {milliseconds(inside)} ms; between them edgemm takes {outside * 1e3:.1f} µs per run",
        f"load {report['load_ms']:.0f} ms (with the import of {report['backend']}) · "
        f"first call {report['first_call_ms']:.1f} ms · {report['samples_per_second']:,.0f} samples/s",
        f"peak memory {report['peak_memory_mb']:.0f} MB ({report['baseline_memory_mb']:.0f} MB before loading)",
    ]
    cv = report["end_to_end"]["cv"]
    if cv > 0.25:
        lines.append(
            f"restless machine: the runs vary by {cv:.0%} of their mean; repeat with nothing else running"
        )
    return "\n".join(lines)


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


def _stage_name(stage: Mapping[str, Any]) -> str:
    return stage["name"] if len(stage["stages"]) == 1 else f"{stage['name']} ({len(stage['stages'])} stages)"


def _row(name: str, times: Mapping[str, Any]) -> list[str]:
    """Returns a table row; a percentile that needs more runs says how many."""
    from edgemm.cli._output import milliseconds

    cells = [name]
    for key in ("p50", "p90", "p99", "p99.9"):
        value = times[f"{key.replace('.', '_')}_ms"]
        cells.append(milliseconds(value) if value is not None else f"needs {times['needs'][key]:,} runs")
    cells.append(milliseconds(times["max_ms"]))
    return [*cells, f"{times['share']:.0%}" if "share" in times else ""]
