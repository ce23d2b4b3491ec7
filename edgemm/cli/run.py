"""`edgemm run`: a bundle and a data file in, the outputs of every sample out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.data import Source
    from edgemm.runtime.fusion import FusionSession

EPILOG = """\b
Examples:
  edgemm run model.edgemm --data eval.npz -o outputs.npz
  edgemm run model.edgemm --data shards/ -o outputs.npz --batch 16
  edgemm run stream.edgemm --data recording.npz -o outputs.npz --reset-every 500
"""


@click.command(epilog=EPILOG, short_help="Run a bundle over a data file.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="Samples: .npz (one array per input, first axis = sample), a folder of .npz shards, or FILE.py:CLASS.",
)
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The .npz file to write.")
@click.option(
    "--batch", metavar="N", type=click.IntRange(min=1), default=1, show_default=True, help="Samples per call."
)
@click.option(
    "--target", metavar="NAME", default="auto", show_default=True, help="Target to run, of those in the bundle."
)
@click.option("--variant", metavar="NAME", help="Variant to run.", show_default="the first of the target")
@click.option(
    "--reset-every",
    type=click.IntRange(min=1),
    metavar="N",
    help="Forget the kept states before every N-th sample.",
    show_default="never",
)
@click.option(
    "--threads",
    metavar="N",
    type=click.IntRange(min=1),
    help="Threads per operator.",
    show_default="the backend's choice",
)
@click.option("--build", is_flag=True, help="Build TensorRT engines that are missing first.")
@click.option("--force", is_flag=True, help="Replace an existing file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def run(bundle: Path, output: Path, force: bool, as_json: bool, **options: Any) -> None:
    """Run BUNDLE over every sample of a data file and write the outputs.

    The outputs are arrays by name in an .npz file; their first axis is the sample. BUNDLE may be an .onnx file
    as well. A model that keeps a state runs the samples in their order and carries the state from one to the
    next. Memory does not grow with the number of samples.
    """
    from edgemm.cli._output import echo_json, refuse_to_overwrite, write_file
    from edgemm.cli._spool import OutputSpool
    from edgemm.data import open_samples
    from edgemm.runtime import open_session

    refuse_to_overwrite(output, force=force)
    samples = open_samples(options["data"])
    session = open_session(
        bundle,
        target=options["target"],
        threads=options["threads"],
        variant=options["variant"],
        build=options["build"],
        cache="off",  # no two samples are the same
    )
    with session, OutputSpool(output.parent, session.io) as spool:
        seconds = _run_all(session, samples, spool, options)
        write_file(output, spool.write_npz, force=force)
        report = {
            "output": str(output),
            "variant": session.variant.name,
            "choice": session.choice and session.choice.to_json(),
            "samples": len(samples),
            "seconds": seconds,
            "outputs": spool.describe(),
        }
        choice = _told(session)
    if as_json:
        echo_json(report)
    else:
        click.echo("\n".join([_summary(report), *choice]))


def _told(session: FusionSession) -> list[str]:
    """Returns what runs and why nothing better; nothing where the variant runs by what it was made for."""
    choice = session.choice
    if choice is None or (choice.backend == session.variant.backend and not choice.passed_over):
        return []
    return choice.lines()


def _run_all(session: FusionSession, samples: Source, spool: Any, options: dict[str, Any]) -> float:
    """Runs every sample in order, gives each call's outputs to `spool`, and returns the seconds inside calls."""
    from time import perf_counter

    from edgemm.cli._feeds import calls, check_batch
    from edgemm.cli._output import warn
    from edgemm.cli._progress import RichProgress
    from edgemm.errors import BackendError, DataError

    io, every = session.io, options["reset_every"]
    check_batch(io, options["batch"])
    if len(samples) == 0:
        raise DataError(f"{samples.origin}: no samples.", hint="the file needs at least one row in every array")
    if every and not io.states:
        warn(f"--reset-every {every} does nothing: this model keeps no state.")
    seconds = 0.0
    with RichProgress() as progress:
        for first, number, feed in calls(io, samples, options["batch"]):
            if every and first % every == 0:
                session.reset_state()
            start = perf_counter()
            try:
                outputs = session.run(feed)
            except (DataError, BackendError) as error:
                raise type(error)(f"{samples.locate(first)}: {error}", hint=error.hint) from error
            seconds += perf_counter() - start
            spool.add(outputs, first, number)
            progress.bar("run", first + number, len(samples))
    return seconds


def _summary(report: dict[str, Any]) -> str:
    from edgemm.cli._output import count, table

    seconds = report["seconds"]
    rate = report["samples"] / max(seconds, 1e-9)
    head = f"{report['output']}: {count(report['samples'], 'sample')} by {report['variant']}"
    rows = [
        [name, output["dtype"], f"[{','.join(map(str, output['shape']))}]"]
        for name, output in report["outputs"].items()
    ]
    return f"{head}, {seconds:.2f} s in calls ({rate:,.0f} per second)\n" + table(
        ["output", "dtype", "shape"], rows
    )
