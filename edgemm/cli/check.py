"""`edgemm check`: what an NVIDIA builder will refuse or misread, before it is called."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgemm.lint import Finding
    from edgemm.lint.bundle import Report
    from edgemm.tensors import ShapeRange

EPILOG = """\b
Examples:
  edgemm check model.onnx --target rtx-ampere
  edgemm check model.edgemm --target jetson-orin-nano
  edgemm check model.onnx --target rtx-ada --shapes image=1x3x64x64:4x3x64x64:16x3x64x64
  edgemm check model.edgemm --target auto --json
"""


@click.command(epilog=EPILOG, short_help="Find what a target's builder will refuse.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="NAME", help="What engines are for; see `edgemm targets`.")
@click.option(
    "--shapes",
    multiple=True,
    metavar="INPUT=MIN:OPT:MAX",
    help="Smallest, usual, largest shape of an input: 1x64:4x64:16x64. Without any, sizes are not checked.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def check(file: Path, target: str, shapes: tuple[str, ...], as_json: bool) -> None:
    """Check an ONNX FILE or a bundle against what is known of a target's builder, without TensorRT installed.

    Of a bundle every stage of every variant for the target is checked, or the float graphs where there is none.
    An error is what the builder refuses or computes as something else; a warning builds and is not what was meant,
    or not everywhere; a note is right and slow. Exit code 1 with an error among the findings, 0 without.
    """
    from edgemm._optional import require
    from edgemm.backends.targets import find_target
    from edgemm.cli._output import echo_json

    profile = _profile(shapes)
    found = find_target(target)
    for package in ("onnx", "onnx_ir"):
        require(package, extra="convert", why="look inside a model")
    from edgemm.lint.bundle import lint_bundle, lint_file

    bundle = file.is_dir() or (file.suffix == ".edgemm" and not file.exists())
    report = (lint_bundle if bundle else lint_file)(file, found, profile)
    if as_json:
        echo_json(report.to_json())
    else:
        click.echo(render(report))
    if report.counts["error"]:
        click.get_current_context().exit(1)


def _profile(texts: Iterable[str]) -> dict[str, ShapeRange] | None:
    """Returns input -> range of every `--shapes`, or None without any."""
    from edgemm.cli._options import pair
    from edgemm.tensors import ShapeRange

    profile = {}
    for text in texts:
        name, value = pair("--shapes", text, "INPUT=MIN:OPT:MAX")
        parts = value.split(":")
        if len(parts) != 3 or not all(re.fullmatch(r"\d+(x\d+)*", p) for p in parts):
            raise click.BadParameter(
                f"got '{text}', expected INPUT=MIN:OPT:MAX with sizes like 1x3x64x64.", param_hint="--shapes"
            )
        low, usual, high = (tuple(map(int, p.split("x"))) for p in parts)
        profile[name] = ShapeRange(low, usual, high)
    return profile or None


def render(report: Report) -> str:
    """Returns a report as text for people; what is found at several nodes alike is told once."""
    from edgemm.cli._output import count

    target = report.target
    sm = f" · SM {target.sm}" if target.sm else ""
    versions = f" · TensorRT {', '.join(target.tensorrt)}" if target.tensorrt else ""
    variants = f"{', '.join(report.variants)} · " if report.variants else ""
    lines = [
        f"{click.style(str(report.path), bold=True)}   {variants}{count(report.graphs, 'graph')}, "
        f"{count(report.nodes, 'node')}",
        f"{click.style(target.name, bold=True)}   {target.summary}{sm}{versions}",
        *(f"note: {note}" for note in report.notes),
        "",
    ]
    for same in _alike(report.findings):
        lines += _lines(same)
    counts = report.counts
    total = ", ".join(count(n, severity) for severity, n in counts.items() if n)
    nothing = "nothing found" if report.checked else f"not checked: no rule is about {target.name}"
    return "\n".join([*lines, total or nothing])


_COLOURS = {"error": "red", "warning": "yellow", "note": "cyan"}


def _alike(findings: Iterable[Finding]) -> list[list[Finding]]:
    groups: dict[tuple[object, ...], list[Finding]] = {}
    for finding in findings:
        key = (finding.rule, finding.severity, finding.reason, finding.fix, finding.variant, finding.stage)
        groups.setdefault(key, []).append(finding)
    return list(groups.values())


def _lines(same: list[Finding]) -> list[str]:
    first, more = same[0], same[1:]
    place = ""
    if first.stage:
        stages = ", ".join(first.stage)
        place = f" in {stages} ({', '.join(first.modalities)}) of {first.variant}"
    tensor = f", tensor '{first.tensor}'" if first.tensor and first.node else ""
    label = click.style(f"{first.severity:<8}", fg=_COLOURS[first.severity])
    lines = [f"{label} {first.rule}: {first.where}{tensor}{place}", f"         {first.reason}"]
    if more:
        names = ", ".join(f.node or f.tensor for f in more[:5])
        lines.append(f"         and so {len(more)} more: {names}{', ...' if len(more) > 5 else ''}")
    return [*lines, f"         fix: {first.fix}"]
