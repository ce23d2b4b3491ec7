"""`make demo`: from real data to a running, profiled bundle, the way a user would go.

Builds the audio-visual digits (MNIST with synthetic speech), trains the model, saves it, and from then on uses
nothing but the `edgemm` command.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from recipes.datasets import av_digits as dataset
from recipes.datasets.cache import save_arrays
from recipes.models import av_digits
from recipes.models.saving import save_program, save_weights

FOLDER = Path("build/demo")
INPUTS = ("image", "audio")

console = Console(highlight=False)


def main() -> None:
    """Runs the demo and prints a summary."""
    start = time.perf_counter()
    with step("data: 5,000 MNIST digits, spoken digits from espeak-ng (synthetic speech)"):
        splits = dataset.load()
    trained = prepare(splits, FOLDER)
    bundle = FOLDER / "av_digits.edgemm"
    result = json.loads(edgemm("convert", *convert_arguments(FOLDER, bundle), capture=True))
    edgemm("inspect", str(bundle))
    edgemm("run", str(bundle), "--data", str(FOLDER / "eval.npz"), "-o", str(FOLDER / "outputs.npz"), "--force")
    page = FOLDER / "profile.html"
    measured = ("--data", str(FOLDER / "eval.npz"), "--seconds", "5", "--layers")
    edgemm("profile", str(bundle), *measured, "--html", str(page), "--force")
    _print_summary(result, trained, time.perf_counter() - start)


def prepare(splits: dict[str, dataset.Arrays], folder: Path) -> dict[str, float]:
    """Trains the model, or loads it, and writes `model.pt2`, `model.pt`, `calib.npz` and `eval.npz`.

    Returns:
        Accuracy on the evaluation pairs, 0 to 1: of both modalities, and with either one blank.
    """
    data = {s: {n: torch.from_numpy(a) for n, a in arrays.items()} for s, arrays in splits.items()}
    model, weights = av_digits.build(), folder / "model.pt"
    if weights.exists() and (folder / "model.pt2").exists():
        model.load_state_dict(torch.load(weights, weights_only=True))
        console.print(f"[dim]·[/] model: trained before, {weights}")
    else:
        with step(f"train: {sum(p.numel() for p in model.parameters()):,} parameters"):
            av_digits.train(model, data["train"], report=lambda line: console.print(f"  [dim]{line}[/]"))
        save_program(model, {n: splits["calib"][n] for n in INPUTS}, folder / "model.pt2")
        save_weights(model, weights)
    for split in ("calib", "eval"):
        save_arrays(folder / f"{split}.npz", splits[split])
    return {
        "both": av_digits.accuracy(model, data["eval"]),
        "image alone": av_digits.accuracy(model, data["eval"], without="audio"),
        "audio alone": av_digits.accuracy(model, data["eval"], without="image"),
    }


def convert_arguments(folder: Path, bundle: Path) -> list[str]:
    """Returns what follows `edgemm convert`."""
    return [
        str(folder / "model.pt2"),
        *("--calib", str(folder / "calib.npz")),
        *("--eval", str(folder / "eval.npz")),
        *("--label", "label", "--metric", "accuracy"),
        *("-o", str(bundle), "--force", "--json"),
    ]


def edgemm(*arguments: str, capture: bool = False) -> str:
    """Runs the command line tool; gives its stdout when captured. Ends the demo when it fails."""
    console.print(f"\n[bold]$ edgemm {' '.join(arguments)}[/]", soft_wrap=True)
    sys.stdout.flush()
    done = subprocess.run(
        [sys.executable, "-m", "edgemm", *arguments],
        stdout=subprocess.PIPE if capture else None,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.returncode)
    return done.stdout or ""


def _print_summary(result: dict[str, Any], trained: dict[str, float], seconds: float) -> None:
    shipped = next(v for v in result["variants"] if not v["refused"])
    accuracy, latency = shipped["accuracy"], shipped["latency"]
    table = Table(title="edgemm demo: audio-visual digits", title_justify="left", box=None, pad_edge=False)
    for column in ("", "float", "edge", ""):
        table.add_column(column, justify="right" if column else "left")
    table.add_row(
        "accuracy",
        f"{accuracy['float']:.2%}",
        f"{accuracy['variant']:.2%}",
        f"{accuracy['samples']:,} held-out pairs, budget {accuracy['budget']:.2%}",
    )
    table.add_row(
        "  one sensor blank",
        f"{trained['image alone']:.2%}",
        "",
        f"image alone; audio alone {trained['audio alone']:.2%}",
    )
    table.add_row(
        "latency",
        f"{latency['float_ms']:.3f} ms",
        f"{latency['variant_ms']:.3f} ms",
        f"{latency['ratio']:.2f} × float ONNX Runtime, one pair on this machine",
    )
    table.add_row(
        "size",
        f"{result['float_size_bytes'] / 1e6:.2f} MB",
        f"{shipped['size_bytes'] / 1e6:.2f} MB",
        f"{shipped['precision']}, {len(result['stages'])} stages",
    )
    console.print()
    console.print(table)
    for variant in result["variants"]:
        if variant["refused"]:
            console.print(f"note: {variant['precision']} was not shipped: {variant['refused']}")
    console.print(f"\nbundle   {result['bundle']}   ({seconds:.0f} s in all)", soft_wrap=True)


@contextmanager
def step(text: str) -> Iterator[None]:
    """Says what the block does, and then how long it took."""
    console.print(f"[bold]·[/] {text}")
    start = time.perf_counter()
    yield
    console.print(f"  [dim]{time.perf_counter() - start:.0f} s[/]")


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
