"""`make demo-rtx`: engines for desktop GPUs that are not here, built by the real TensorRT for RTX.

Converts the model of `make demo` for an Ampere and a Blackwell GPU, in float32 and as planned, and prints what the
engines are: size, precision of the layers, build time. That they are fast, only a GPU can tell.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from typing import Any

from rich.table import Table

from recipes.datasets import av_digits as dataset
from recipes.demo import FOLDER, console, convert_arguments, edgemm, prepare, step

TARGETS = ("rtx-ampere", "rtx-blackwell")


def main() -> None:
    """Runs the demo and prints a summary."""
    start = time.perf_counter()
    with step("data: 5,000 MNIST digits, spoken digits from espeak-ng (synthetic speech)"):
        splits = dataset.load()
    prepare(splits, FOLDER)
    results = {}
    for name, options in {"float32": ("--precision", "fp32"), "planned": ()}.items():
        bundle = FOLDER / f"av_digits-rtx-{name}.edgemm"
        targets = [word for target in TARGETS for word in ("--target", target)]
        results[name] = json.loads(
            edgemm("convert", *convert_arguments(FOLDER, bundle), *targets, *options, capture=True)
        )
    edgemm("inspect", results["planned"]["bundle"])
    edgemm("check", results["planned"]["bundle"], "--target", TARGETS[0])
    _print_summary(results["float32"], results["planned"])
    console.print(f"\nbundle   {results['planned']['bundle']}   ({time.perf_counter() - start:.0f} s in all)")


def _print_summary(floats: Mapping[str, Any], planned: Mapping[str, Any]) -> None:
    title = "edgemm demo-rtx: engines for GPUs that are not here, float32 → planned"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("target", "stage", "weights kB", "engine kB", "build s", "layers by type"):
        table.add_column(column, justify="right" if column.endswith(("kB", " s")) else "left", no_wrap=True)
    shipped = [v for v in planned["variants"] if not v["refused"]]
    for variant in shipped:
        before = next(v for v in floats["variants"] if v["target"] == variant["target"] and not v["refused"])
        for engine in variant["engines"]:
            built, other = variant["built"][engine["name"]], before["built"][engine["name"]]
            table.add_row(
                variant["target"],
                engine["name"],
                f"{_weights(other)} → {_weights(built)}",
                f"{other['size_bytes'] / 1e3:,.0f} → {built['size_bytes'] / 1e3:,.0f}",
                f"{other['seconds']:.2f} → {built['seconds']:.2f}",
                _counts(built["layers"]),
            )
    console.print()
    console.print(table)
    console.print("In a model this small the kernels in an engine outweigh its weights.\n")
    for variant in planned["variants"]:
        if variant["refused"]:
            console.print(f"note: {variant['name']} was not shipped: {variant['refused']}")
    for variant in shipped:
        accuracy = variant["accuracy"]
        text = f"accuracy {accuracy['float']:.2%} → {accuracy['variant']:.2%}, simulated; latency unmeasured"
        console.print(f"{variant['name']:<18} {text}")


def _weights(built: Mapping[str, Any]) -> str:
    """Returns the bytes of the weights as they are in the engine's graph, in kB."""
    sizes = built["weight_bytes"]
    return f"{(sizes['quantized'] + sizes['other']) / 1e3:,.0f}"


def _counts(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(numbers.items(), reverse=True) if n)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
