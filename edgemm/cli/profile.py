"""`edgemm profile`: how long a bundle or an ONNX file takes here, stage by stage."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemm.cli._options import AboveZero
from edgemm.cli._profile_layers import further_options
from edgemm.cli._profile_present import presenting_options

if TYPE_CHECKING:
    from edgemm.profiling.session import Measurement

EPILOG = """\b
Examples:
  edgemm profile model.edgemm
  edgemm profile model.edgemm --data eval.npz --runs 2000
  edgemm profile model.edgemm --rate camera=30,lidar=10 --cached lidar
  edgemm profile model.onnx --batch 8 --threads 1 --json
  edgemm profile model.edgemm --budget 'p99<30ms,memory<500MB' --html report.html
  edgemm profile new.edgemm --compare old.edgemm --fail-if 'slower>5%'
  edgemm profile model.edgemm --trace trace.json --csv runs.csv
  edgemm profile model.edgemm --layers 20 --scenario single-stream
"""


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
    help="Number of measured runs, in each mode.",
    show_default="as many as fit into --seconds",
)
@click.option(
    "--seconds",
    metavar="S",
    type=AboveZero(),
    help="How long to measure each mode, in seconds.",
    show_default="3, without --runs",
)
@click.option(
    "--warmup",
    metavar="N",
    type=click.IntRange(min=0),
    help="Runs before the measured ones.",
    show_default="until the times are steady",
)
@click.option(
    "--rate",
    "rates",
    multiple=True,
    metavar="MODALITY=HZ",
    help="Also measure paced runs, at the rates of the sensors: camera=30,lidar=10; counts missed deadlines.",
)
@click.option(
    "--cached",
    multiple=True,
    metavar="MODALITY",
    help="Also measure runs in which this modality does not change, so that its encoder does not run.",
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
@click.option(
    "--csv", metavar="FILE", type=click.Path(path_type=Path), help="Write a row for every run and stage, too."
)
@click.option(
    "--trace",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Write every run for Perfetto (ui.perfetto.dev) or Chrome, too.",
)
@further_options
@presenting_options
@click.option("--no-recipe", is_flag=True, help="Leave out what the bundle's recipe says of profiling.")
@click.option("--force", is_flag=True, help="Replace files that exist.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def profile(file: Path, as_json: bool, **options: Any) -> None:
    """Measure how long FILE takes on this machine, per stage and end to end.

    FILE is a bundle, an .onnx file, or a TensorRT engine (.engine, .plan) with its sidecar. Runs follow each other
    without a pause, after some that are not counted: until the times are steady. --rate and --cached measure
    further modes. A percentile is shown only when there are enough runs for it. A state is kept from run to run;
    one that grows (a key-value cache) makes later runs slower, and --reset-every holds it short.
    What a bundle's recipe says in `profile` and as rates of inputs stands in for options that are not given.
    docs/latency-report.md explains the JSON.
    """
    from edgemm.cli._output import echo_json
    from edgemm.cli._profile_layers import TOP, check_further, render_further
    from edgemm.cli._profile_present import end_if_broken, judge, read_presenting, render_budget, show_comparison
    from edgemm.cli._profile_recipe import with_recipe
    from edgemm.cli._profile_run import measure_file
    from edgemm.cli._profile_text import render

    if options["runs"] and options["seconds"]:
        raise click.UsageError("give --runs or --seconds, not both.")
    options = with_recipe(file, options)
    asked = read_presenting(options)
    check_further(options)
    if asked.against is not None:
        show_comparison(file, asked, options, as_json=as_json)
        return
    _check_files(file, options)
    found = measure_file(file, options)
    outcomes = judge(found.report, asked)
    _write_files(file, found, options)
    if as_json:
        echo_json(found.report)
    else:
        further = render_further(found.report, options["layers"] or TOP)
        click.echo("\n".join([render(found.report), *further, *render_budget(outcomes)]))
    end_if_broken(not outcome.kept for outcome in outcomes)


def _check_files(file: Path, options: Mapping[str, Any]) -> None:
    """Refuses files that cannot be written, or that are read, before anything is measured."""
    from edgemm.cli._output import refuse_to_overwrite, refuse_to_touch

    asked = [name for name in ("csv", "trace", "html") if options[name] is not None]
    named = [options[name] for name in asked]
    if len(set(named)) < len(named):
        raise click.UsageError(f"{' and '.join(f'--{name}' for name in asked)} name the same file.")
    logs = options["loadgen_logs"]
    for path in [*named, *([] if logs is None else [Path(logs)])]:
        refuse_to_touch(path, [file, *_files_beside(file), *_data_files(options["data"])])
    for path in named:
        refuse_to_overwrite(path, force=options["force"])


def _files_beside(file: Path) -> list[Path]:
    """Returns what may belong to a model file: the weights of an ONNX model, the sidecar of an engine."""
    found = [
        *(file.with_name(f"{file.name}{end}") for end in (".data", "_data", ".json")),
        file.with_suffix(".data"),
    ]
    return [path for path in found if path.is_file()]


def _data_files(data: str | None) -> list[Path]:
    """Returns the files of `--data`: a file, the shards of a folder, the script of FILE.py:CLASS."""
    if data is None:
        return []
    path = Path(data.rpartition(":")[0] if ".py:" in data else data)
    return sorted(path.glob("*.npz")) if path.is_dir() else [path]


def _write_files(file: Path, found: Measurement, options: Mapping[str, Any]) -> None:
    from edgemm.cli._output import warn, write_file
    from edgemm.profiling.files import MAX_TRACED, left_out, write_csv, write_trace
    from edgemm.profiling.html import write_page

    if options["html"] is not None:
        write_file(options["html"], lambda out: write_page(out, found.report, file), force=options["force"])
    if options["csv"] is not None:
        write_file(options["csv"], lambda out: write_csv(out, found.runs), force=options["force"])
    if options["trace"] is not None:
        write_file(options["trace"], lambda out: write_trace(out, found.runs, file.name), force=options["force"])
        if left_out(found.runs):
            warn(f"{options['trace']} has the last {MAX_TRACED:,} runs of each mode; all are in --csv.")
