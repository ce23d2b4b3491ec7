"""`edgemm build`: the TensorRT engines that a bundle lacks, built on this machine, into the bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from edgemm.cli._options import AboveZero

if TYPE_CHECKING:
    from edgemm.backends.device import BuildReport, BuiltEngine, Step
    from edgemm.cli._progress import RichProgress

EPILOG = """\b
Examples:
  edgemm build model.edgemm
  edgemm build model.edgemm --max-memory 1024 --timeout 7200
  edgemm build model.edgemm --target rtx-ampere
  edgemm build model.edgemm --dla-core 0 --gpu-fallback
"""

_MIB = 2**20


@click.command(epilog=EPILOG, short_help="Build a bundle's TensorRT engines.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--target",
    metavar="NAME",
    default="auto",
    show_default=True,
    help="What to build for. auto: the GPU here. rtx-... needs no GPU. See `edgemm targets`.",
)
@click.option("--variant", metavar="NAME", help="Variant to build.", show_default="those for the target")
@click.option(
    "--max-memory",
    metavar="MB",
    type=click.IntRange(min=1),
    help="Scratch memory of one layer on the GPU, in MiB.",
    show_default="all there is",
)
@click.option(
    "--timeout",
    metavar="SECONDS",
    type=AboveZero(),
    default=3600.0,
    show_default=True,
    help="Longest build of one engine.",
)
@click.option("--level", type=click.IntRange(0, 5), help="0: quick build ... 5: quick engine.", show_default="3")
@click.option("--version-compatible", is_flag=True, help="Engines run with later TensorRT versions, too.")
@click.option(
    "--hardware-compatible",
    type=click.Choice(["ampere-plus", "same-compute-capability"]),
    help="Engines run on other GPUs, too.",
    show_default="only on one like this",
)
@click.option(
    "--dla-core", type=click.IntRange(min=0), metavar="N", help="Accelerator core to run on.", show_default="none"
)
@click.option("--gpu-fallback", is_flag=True, help="With --dla-core: layers that it lacks run on the GPU.")
@click.option("--weight-streaming", is_flag=True, help="Weights may stay in the CPU's memory.")
@click.option("--refit", is_flag=True, help="Weights can be replaced afterwards.")
@click.option("--forget", is_flag=True, help="Take back what earlier builds asked of the builder.")
@click.option("--force", is_flag=True, help="Build again what is there and fits.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the table.")
def build(bundle: Path, target: str, variant: str | None, force: bool, as_json: bool, **options: Any) -> None:
    """Build the TensorRT engines that BUNDLE lacks for this GPU, and put them into it.

    The graphs in a bundle run anywhere; an engine is for one GPU and one TensorRT. What is there and fits is kept,
    each engine is in the bundle as soon as it is built, and a build that was interrupted goes on where it was.
    Kernel timings are kept in the bundle's cache folder. What is asked of the builder, --max-memory apart, becomes
    part of the variant's plan: later builds, and sessions, ask for it as well, until --forget takes it back.
    """
    from dataclasses import asdict

    from edgemm.backends.device import Watch, build_missing
    from edgemm.backends.tensorrt import BuildOptions
    from edgemm.cli._output import echo_json
    from edgemm.cli._progress import RichProgress

    asked = _builder_options(options, asdict(BuildOptions()))
    with RichProgress() as progress:
        watch = Watch(options["timeout"], _Reporter(progress))
        try:
            report = build_missing(
                bundle,
                target=target,
                variant=variant,
                options=asked,
                force=force,
                watch=watch,
            )
        except KeyboardInterrupt:
            click.echo("interrupted; engines that were built are in the bundle, `edgemm build` goes on.", err=True)
            click.get_current_context().exit(130)
    if as_json:
        echo_json(report.to_json())
    else:
        click.echo("\n".join([render(report), *_notes(report, {} if options["forget"] else asked)]))


def _builder_options(options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns the fields of `BuildOptions` that were given, over `defaults` where the plan's own are forgotten."""
    names = {
        "level": "optimization_level",
        "version_compatible": "version_compatible",
        "hardware_compatible": "hardware_compatibility",
        "dla_core": "dla_core",
        "gpu_fallback": "gpu_fallback",
        "weight_streaming": "weight_streaming",
        "refit": "refit",
    }
    given = dict(defaults) if options["forget"] else {}
    for name, field in names.items():
        if options[name] is not None and options[name] is not False:  # 0 is a value
            given[field] = options[name]
    if options["max_memory"] is not None:
        given["workspace"] = options["max_memory"] * _MIB
    return given


class _Reporter:
    """Shows which engine is being built, and how far TensorRT is."""

    def __init__(self, progress: RichProgress) -> None:
        self._progress = progress

    def __call__(self, step: Step) -> None:
        at = step.progress
        name = f"{step.number}/{step.total} {step.engine}"
        if at.steps > 1:
            self._progress.bar(f"{name}: {at.phase}", at.step, at.steps)
        else:
            self._progress.status(name, at.phase)


def render(report: BuildReport) -> str:
    """Returns a report as text for people."""
    from edgemm.cli._output import count, megabytes, table, warn

    for engine in report.engines:
        for text in engine.warnings:
            warn(f"{engine.engine}: {text}")
    rows = [_row(engine) for engine in report.engines]
    text = table(
        ["variant", "engine", "built by", "size", "seconds", "layers", ""], rows, right=("size", "seconds")
    )
    text += "".join(f"\ndropped {engine.file}: it {engine.reason}" for engine in report.dropped)
    made = sum(not e.kept for e in report.engines)
    size = megabytes(sum(e.sidecar.size for e in report.engines))
    gpu = f"SM {report.gpu.sm}" + (f", {report.gpu.name}" if report.gpu.memory else "")
    return f"{text}\n\n{report.bundle}: {count(len(report.engines), 'engine')} for {gpu}, {made} built now, {size}"


def _notes(report: BuildReport, asked: dict[str, Any]) -> list[str]:
    """Returns what is to be known of a build: options that stay, engines whose size tells nothing."""
    from edgemm.backends.device import LOCAL

    stay = [f"{name}={value}" for name, value in asked.items() if name not in LOCAL]
    notes = [f"note: later builds and sessions ask for {', '.join(stay)} as well (--forget takes it back)"]
    unproven = [
        e.engine for e in report.engines if e.sidecar.size_limit is None and e.sidecar.weights["quantized"]
    ]
    size = f"note: {', '.join(dict.fromkeys(unproven))}: the size proves nothing: too few quantized weights"
    return [*(notes if stay else []), *([size] if unproven else [])]


def _row(engine: BuiltEngine) -> list[str]:
    from edgemm.cli._output import megabytes
    from edgemm.runtime._trt.module import MODULES

    side = engine.sidecar
    layers = ", ".join(f"{precision} {count}" for precision, count in side.precisions.items())
    state = "kept" if engine.kept else ""
    who = f"{MODULES.get(side.flavour, side.flavour)} {side.version}"
    return [engine.variant, engine.engine, who, megabytes(side.size), f"{side.seconds:.1f}", layers, state]
