"""`edgemm targets`: what engines can be made for, what is known of it, and which of them this machine is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from edgemm.backends.targets import Detection, Target

EPILOG = """\b
Examples:
  edgemm targets
  edgemm targets jetson-orin-nano
  edgemm targets auto --json
"""


@click.command(epilog=EPILOG, short_help="Show what engines can be made for.")
@click.argument("name", required=False)
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def targets(name: str | None, as_json: bool) -> None:
    """Show every target, or one (NAME) with its JetPacks, precisions, memory and the document behind each fact.

    NAME may be a compute capability (sm86), and `auto` is this machine.
    """
    from edgemm.backends.targets import AUTO, detect_target, find_target, list_targets
    from edgemm.cli._output import echo_json

    here = detect_target() if name in (None, AUTO) else None
    shown = list_targets() if name is None else (here.target if here else find_target(name),)
    if as_json:
        echo_json({"targets": [t.to_json() for t in shown], "here": here.to_json() if here else None})
    elif name is None:
        assert here is not None
        click.echo(render_all(shown, here))
    else:
        click.echo(render_one(shown[0], here))


def render_all(shown: tuple[Target, ...], here: Detection) -> str:
    """Returns the table of all targets, and which one this machine is."""
    from edgemm.cli._output import table

    rows = [
        [
            f"{t.name}{' *' if t.name == here.target.name else ''}",
            str(t.sm or ""),
            ", ".join(t.tensorrt),
            " ".join(f"({p})" if p == "fp32" and _qualified(t) else p for p in t.precisions),
            str(t.dla or ""),
            "-".join(map(str, dict.fromkeys((t.memory_gb[0], t.memory_gb[-1])))) if t.memory_gb else "",
            t.backends[0],
        ]
        for t in shown
    ]
    header = ["target", "SM", "TensorRT", "precisions", "DLA", "GB", "backend"]
    partly = [f"(fp32)  {t.name}: {text}" for t in shown for text in _qualified(t)]
    return "\n".join([table(header, rows, right=("SM", "DLA", "GB")), *partly, "", *_here(here)])


def _qualified(target: Target) -> list[str]:
    """Returns what a target cannot do in float32, or nothing."""
    return [f.text for f in target.facts if f.field == "precisions" and f.text.startswith("no FP32")]


def render_one(target: Target, here: Detection | None) -> str:
    """Returns what is known of one target, each fact with its source."""
    from edgemm.cli._output import table

    lines = [
        f"{click.style(target.name, bold=True)}   {target.summary}",
        f"SM          {target.sm or 'not one device'}",
        f"precisions  {', '.join(target.precisions)}",
        f"DLA         {f'up to {target.dla} cores' if target.dla else 'none'}",
        f"memory      {' or '.join(map(str, target.memory_gb)) + ' GB' if target.memory_gb else 'not one device'}",
        f"backends    {', '.join(target.backends)}, the first that is there",
    ]
    sources = list(dict.fromkeys([*(j.source for j in target.jetpacks), *(f.source for f in target.facts)]))
    if target.jetpacks:
        rows = [
            [j.version, j.l4t, j.tensorrt, j.cuda, j.python, f"[{sources.index(j.source) + 1}]"]
            for j in target.jetpacks
        ]
        lines += ["", table(["JetPack", "L4T", "TensorRT", "CUDA", "Python", "source"], rows)]
    facts = [[f.field, f"[{sources.index(f.source) + 1}]", f.text] for f in target.facts]
    lines += ["", table(["about", "source", "what it says"], facts), ""]
    lines += [f"[{number}] {source}" for number, source in enumerate(sources, 1)]
    return "\n".join([*lines, *(["", *_here(here)] if here else [])])


def _here(here: Detection) -> list[str]:
    lines = [f"* this machine: {here.target.name}", *(f"  found    {text}" for text in here.found)]
    return [*lines, *(f"  missing  {text}" for text in here.missing)]
