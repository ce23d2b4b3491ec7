"""`edgemm compare`: two forms of a model, their outputs and every tensor inside that both have."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.quant.difference import Difference, Side

EPILOG = """\b
Examples:
  edgemm compare model.onnx model.edgemm --data eval.npz
  edgemm compare model.edgemm:cpu-fp32 model.edgemm:cpu-int8 --data eval.npz --all
  edgemm compare float.onnx quantized.onnx --data eval.npz --threshold 30 --json
"""


@click.command(epilog=EPILOG, short_help="Compare two forms of a model, layer by layer.")
@click.argument("a")
@click.argument("b")
@click.option(
    "--data",
    required=True,
    metavar="PATH",
    help="Samples: .npz (one array per input, first axis = sample), a folder of .npz shards, or FILE.py:CLASS.",
)
@click.option(
    "--variant", metavar="NAME", help="Variant of B, as in B:NAME.", show_default="the first of the bundle"
)
@click.option(
    "--samples", type=click.IntRange(min=1), metavar="N", help="Use the first N samples.", show_default="all"
)
@click.option(
    "--layer-samples",
    type=click.IntRange(min=0),
    metavar="N",
    default=64,
    show_default=True,
    help="Samples for the tensors inside; 0 compares outputs only.",
)
@click.option(
    "--threshold",
    type=float,
    metavar="DB",
    default=20.0,
    show_default=True,
    help="SQNR in dB below which a tensor diverges.",
)
@click.option("--all", "every", is_flag=True, help="Show every tensor, not the worst 15.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the tables.")
def compare(a: str, b: str, every: bool, as_json: bool, **options: Any) -> None:
    """Compare A, the reference, with B on the samples of a data file.

    A and B are bundles (BUNDLE:VARIANT for another than the first) or ONNX files, in any mix: a float model and
    its int8 bundle, two variants, two files. Outputs are those of the sessions that ship. Tensors inside are
    matched by name, behind QuantizeLinear and DequantizeLinear too; the first one that diverges is where to look.
    Memory does not grow with the number of samples.
    """
    from edgemm._optional import require
    from edgemm.cli._options import path_and_variant
    from edgemm.cli._output import echo_json
    from edgemm.cli._progress import RichProgress
    from edgemm.data import Subset, open_samples

    for package in ("onnx", "onnx_ir"):
        require(package, extra="convert", why="look inside a model")
    from edgemm.quant.difference import compare_sides, open_side

    source = open_samples(options["data"])
    number = min(len(source), options["samples"] or len(source))
    samples = source if number == len(source) else Subset(source, tuple(range(number)))
    first, second = open_side(*path_and_variant(a, None)), open_side(*path_and_variant(b, options["variant"]))
    with RichProgress() as progress, first.session, second.session:
        found = compare_sides(
            first,
            second,
            samples,
            threshold=options["threshold"],
            layer_samples=options["layer_samples"],
            progress=progress.bar,
        )
    if as_json:
        sides = {
            name: {"path": str(s.path), "variant": s.session.variant.name} for name, s in _pair(first, second)
        }
        echo_json({**sides, "samples": number, **found.to_json()})
    else:
        _print(first, second, found, number, every=every)


def _pair(first: Side, second: Side) -> tuple[tuple[str, Side], tuple[str, Side]]:
    return ("a", first), ("b", second)


def _print(first: Side, second: Side, found: Difference, number: int, *, every: bool) -> None:
    from edgemm.cli._output import count, table, warn

    click.echo(f"A {first.label}\nB {second.label}\n{count(number, 'sample')}\n")
    rows = []
    for name, output in found.outputs.items():
        told = output.to_json()
        worst = ", ".join(f"{w['sample']} ({w['max_abs']:.3g})" for w in told["worst"][:3])
        agreement = "-" if told["agreement"] is None else f"{told['agreement']:.2%}"
        rows.append([name, *_numbers(told), agreement, worst if told["max_abs"] else "-"])
    header = ("output", "SQNR dB", "cosine", "max abs", "agreement", "worst samples")
    click.echo(table(header, rows, right=header[1:5]))
    if found.layers:
        _print_layers(found, every=every)
    for note in found.notes:
        warn(note)


def _print_layers(found: Difference, *, every: bool) -> None:
    from edgemm.cli._output import count, table

    first = found.first_diverging
    shown = found.layers
    if not every and len(shown) > _SHOWN:
        worst = sorted(shown, key=lambda x: x.sqnr_db)[:_SHOWN]
        shown = tuple(x for x in shown if x in worst or x is first)
    below = sum(x.sqnr_db < found.threshold for x in found.layers)
    click.echo(
        f"\n{count(len(found.layers), 'tensor')} inside on {count(found.layer_samples, 'sample')}, "
        f"{below} below {found.threshold:g} dB"
        + ("" if len(shown) == len(found.layers) else f"; the worst {len(shown)} in order (--all shows the rest)")
    )
    rows = []
    for layer in shown:
        told = {
            "sqnr_db": layer.sqnr_db,
            "cosine": layer.parity.min_cosine,
            "max_abs": layer.parity.max_abs,
        }
        engine = layer.engines[1] if layer.engines[0] == layer.engines[1] else " / ".join(layer.engines)
        mark = "<- first diverging" if layer is first else "rescaled" if layer.rescaled else ""
        rows.append([layer.tensor, layer.op, engine, *_numbers(told), mark])
    header = ("tensor", "op", "engine", "SQNR dB", "cosine", "max abs", "")
    click.echo(table(header, rows, right=header[3:6]))
    if any(x.rescaled for x in shown):
        click.echo("rescaled: a plan moved factors per channel into the next weights; SQNR is without them")
    if first is None:
        click.echo(f"no tensor diverges: all are at {found.threshold:g} dB or above")
    else:
        click.echo(f"first diverging: '{first.tensor}' ({first.op}), {first.sqnr_db:.1f} dB")


_SHOWN = 15


def _numbers(told: Mapping[str, Any]) -> list[str]:
    if told["max_abs"] == 0:
        return ["equal", "1", "0"]
    sqnr = told["sqnr_db"]
    return [f"{sqnr:.1f}" if math.isfinite(sqnr) else str(sqnr), f"{told['cosine']:.6f}", f"{told['max_abs']:.3g}"]
