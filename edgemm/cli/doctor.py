"""`edgemm doctor`: what this machine can do, and what keeps it from doing more."""

from __future__ import annotations

import platform
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from edgemm.cli._diagnosis import PackageStatus
    from edgemm.runtime.machine import Machine

EPILOG = """\b
Examples:
  edgemm doctor
  edgemm doctor model.edgemm
  edgemm doctor --json > doctor.json
"""

_READY = ("ok", "too old")


@click.command(epilog=EPILOG, short_help="Show what this machine offers and lacks.")
@click.argument("bundle", required=False, type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout instead of the text.")
def doctor(bundle: Path | None, as_json: bool) -> None:
    """Show what is installed here, what the hardware offers, and what is missing.

    With a BUNDLE, show as well what of it runs here, and why nothing better does.

    Works with nothing but the base packages. Every installed package is imported once, each in its own
    process, so that a broken one is found; that takes a few seconds where torch is installed.
    """
    from edgemm.cli._output import echo_json

    opened = what_runs(bundle) if bundle is not None else None
    report = diagnose()
    if opened is not None:
        report["bundle"] = opened
        report["problems"] += [*opened["damaged"], *([opened["error"]] if opened["error"] else [])]
    if as_json:
        echo_json(report)
    else:
        click.echo(render(report))


def diagnose(root: Path = Path("/")) -> dict[str, Any]:
    """Returns every fact as plain JSON values.

    Args:
        root: Tree to read the machine's files from (see `edgemm.runtime.machine`).
    """
    from edgemm import __version__
    from edgemm.cli import _diagnosis as facts
    from edgemm.runtime.machine import describe_machine

    machine = describe_machine(root)
    packages = facts.check_packages()
    cuda = facts.check_cuda()
    tensorrt = facts.check_tensorrt()
    providers: list[str] = next((p.facts["providers"] for p in packages if "providers" in p.facts), [])
    openvino = next((p for p in packages if "capabilities" in p.facts), None)
    supported = sys.version_info[:2] >= facts.MINIMUM_PYTHON
    report = {
        "edgemm": __version__,
        "python": {
            "version": platform.python_version(),
            "path": sys.executable,
            "supported": supported,
            "minimum": ".".join(map(str, facts.MINIMUM_PYTHON)),
        },
        "machine": machine.to_json(),
        "packages": [p.to_json() for p in packages],
        "backends": backends(packages),
        "builders": builders(packages),
        "providers": providers,
        "openvino": openvino and {"version": openvino.version, "capabilities": openvino.facts["capabilities"]},
        "cuda": {
            "driver": asdict(cuda["driver"]),
            "runtime": asdict(cuda["runtime"]),
            "devices": cuda["devices"],
            "nvidia_smi": cuda["nvidia_smi"],
        },
        "tensorrt": asdict(tensorrt),
        "jetpack": asdict(machine.jetson) if machine.jetson else None,
        "extras": [_extra(name, packages, machine) for name in facts.EXTRAS],
    }
    report["problems"] = [*facts.conflicts(), *_problems(report, packages, machine)]
    return report


def what_runs(bundle: Path) -> dict[str, Any]:
    """Returns `{bundle, choice, lines, hints, error, damaged}`: what a session on `bundle` runs on this machine.

    Raises:
        BundleError: No bundle is there, or it is damaged.
    """
    from edgemm.bundle import damaged_engines, read_manifest
    from edgemm.errors import BackendError, MissingExtraError
    from edgemm.runtime import open_session

    report: dict[str, Any] = {"bundle": str(bundle), "choice": None, "lines": [], "hints": [], "error": None}
    try:
        with open_session(bundle) as session:
            choice = session.choice
    except (BackendError, MissingExtraError) as error:
        report |= {"hints": [error.hint], "error": str(error)}
        choice = None
    lost = damaged_engines(bundle, read_manifest(bundle)) if bundle.is_dir() else {}
    report["damaged"] = [f"{engine} {why}; build it again: edgemm build {bundle}." for engine, why in lost.items()]
    if choice is None:
        return report
    return report | {
        "choice": choice.to_json(),
        "lines": choice.lines(),
        "hints": list(dict.fromkeys(p.hint for p in choice.passed_over)),
    }


def _extra(name: str, packages: tuple[PackageStatus, ...], machine: Machine) -> dict[str, Any]:
    """Returns `{name, enables, complete, missing, install, note}` of one extra."""
    from edgemm.cli._diagnosis import EXTRAS

    missing = [p.package.name for p in packages if p.package.extra == name and p.state != "ok"]
    installed = {p.package.name for p in packages if p.version is not None}
    install, note = f"pip install 'edgemm[{name}]'", None
    if name == "tensorrt" and machine.jetson:
        install = "sudo apt install python3-libnvinfer (JetPack's own; use a venv with --system-site-packages)"
    if name == "gpu" and "onnxruntime" in installed:
        install = f"pip uninstall onnxruntime, then {install} (they share a folder)"
    if name == "cpu" and "onnxruntime-gpu" in installed:
        install, note = "not needed: onnxruntime-gpu runs on the CPU as well", None
    return {
        "name": name,
        "enables": EXTRAS[name],
        "complete": not missing,
        "missing": missing,
        "install": install if missing else None,
        "note": note,
    }


def _problems(report: dict[str, Any], packages: tuple[PackageStatus, ...], machine: Machine) -> list[str]:
    """Returns what needs a hand, worst first; a package that is simply not installed is no problem."""
    found = []
    if not report["python"]["supported"]:
        version, minimum = report["python"]["version"], report["python"]["minimum"]
        found.append(f"Python {version} is too old; edgemm needs {minimum} or newer.")
    for status in packages:
        if status.state in ("broken", "stub", "too old"):
            found.append(f"{status.package.name} {status.version or ''} is {status.state}: {status.detail}.")
    if not can_run(packages):
        found.append("no backend is installed, so no bundle can run here: pip install 'edgemm[cpu]'.")
    if "CUDAExecutionProvider" in report["providers"]:
        driver = report["cuda"]["driver"]
        if driver["why_not"]:
            found.append(f"onnxruntime offers CUDA, but the driver does not work: {driver['why_not']}.")
    if not machine.has_int8_dot_product:
        found.append("this CPU has no int8 dot product (VNNI, DotProd, I8MM); int8 will rarely beat float here.")
    if machine.governor and "performance" not in machine.governor:
        found.append(
            f"the frequency governor is '{machine.governor}'; latencies will wander. "
            "For measuring: sudo cpupower frequency-set -g performance."
        )
    return found


def can_run(packages: tuple[PackageStatus, ...]) -> bool:
    """Returns whether some backend imports."""
    return bool(backends(packages))


def backends(packages: tuple[PackageStatus, ...]) -> list[str]:
    """Returns the backends that can run engines here, in the order of the registry."""
    from edgemm.runtime.providers import CUDA, RTX, TENSORRT
    from edgemm.runtime.registry import SESSIONS

    ready = {p.package.module for p in packages if p.state in _READY}
    offered = {provider for p in packages for provider in p.facts.get("providers", ())}
    on_gpu = {
        "tensorrt": bool(ready & {"tensorrt", "tensorrt_rtx"}),
        "ort-tensorrt": TENSORRT in offered,
        "ort-rtx": RTX in offered,
        "ort-cuda": CUDA in offered,
    }
    gpu = any(on_gpu.values()) and _has_gpu()
    return [name for name in SESSIONS if (on_gpu[name] and gpu if name in on_gpu else name in ready)]


def builders(packages: tuple[PackageStatus, ...]) -> list[str]:
    """Returns what `edgemm build` can build with here, and for what, in words."""
    versions = {p.package.module: p.version for p in packages if p.state in _READY}
    found = []
    if "tensorrt_rtx" in versions:
        rtx = f"TensorRT for RTX {versions['tensorrt_rtx']}"
        found.append(f"{rtx}, for the targets rtx-..., with or without a GPU (edgemm build --target)")
    if "tensorrt" in versions and _has_gpu():
        found.append(f"TensorRT {versions['tensorrt']}, for the GPU here")
    return found


def _has_gpu() -> bool:
    from edgemm.errors import EdgemmError
    from edgemm.runtime import cuda

    try:
        cuda.find_gpu()
    except EdgemmError:
        return False
    return True


def can_convert(packages: list[dict[str, Any]]) -> bool:
    """Returns whether every package of the `convert` extra and a backend to verify with are there."""
    ready = {p["name"]: p["state"] in _READY for p in packages}
    needed = all(ready[p["name"]] for p in packages if p["extra"] == "convert")
    return needed and (ready["onnxruntime"] or ready["onnxruntime-gpu"])


def render(report: dict[str, Any]) -> str:
    """Returns the report as text for people."""
    from edgemm.cli._output import table

    python = report["python"]
    support = "supported" if python["supported"] else f"too old, needs {python['minimum']}"
    lines = [f"edgemm {report['edgemm']} · Python {python['version']} ({support}) · {python['path']}", ""]
    lines += _machine_lines(report)
    rows = [
        [p["name"], p["version"] or "-", p["state"], p["extra"] or "base", p["detail"] or ""]
        for p in report["packages"]
    ]
    lines += ["", table(["package", "version", "state", "extra", ""], rows), ""]
    rows = [
        [e["name"], "yes" if e["complete"] else "no", "; ".join(filter(None, [e["enables"], e["note"]]))]
        for e in report["extras"]
    ]
    lines += [table(["extra", "here", "enables"], rows)]
    lines += [f"  to add {e['name']}: {e['install']}" for e in report["extras"] if e["install"]]
    lines += [
        "",
        f"run bundles      {', '.join(report['backends']) or 'no'}",
        f"convert models   {'yes' if can_convert(report['packages']) else 'no'}",
        f"build engines    {'; '.join(report['builders']) or 'no'}",
    ]
    if "bundle" in report:
        bundle = report["bundle"]
        lines += ["", click.style(bundle["bundle"], bold=True), *(f"  {line}" for line in bundle["lines"])]
        lines += [f"  hint: {hint}" for hint in bundle["hints"]]
    lines += [click.style("problem: ", fg="yellow") + text for text in report["problems"]]
    return "\n".join(lines)


def _machine_lines(report: dict[str, Any]) -> list[str]:
    from edgemm.runtime.machine import CPU_FEATURES

    machine, cuda = report["machine"], report["cuda"]
    features = ", ".join(CPU_FEATURES[f] for f in machine["features"]) or "none that matters"
    quota = f", limited to {machine['cpu_quota']:g} by the container" if machine["cpu_quota"] else ""
    memory = f" · {machine['memory_mb']:,} MB memory" if machine["memory_mb"] else ""
    governor = machine["governor"] or "not shown by this kernel (virtual machine or container)"
    lines = [
        f"machine    {machine['board'] or machine['system']} · {machine['arch']}{memory}",
        f"cpu        {machine['cpu']} · {machine['cores']} cores{quota}",
        f"           {features}",
        f"governor   {governor}",
        f"providers  {', '.join(report['providers']) or 'none: onnxruntime is not installed'}",
        f"openvino   {_openvino(report['openvino'])}",
        f"cuda       {_library(cuda['driver'])}",
    ]
    lines += [
        f"           {d['name']} · compute capability {d['compute_capability']} · {d['memory_mb']:,} MB"
        for d in cuda["devices"]
    ]
    smi = cuda["nvidia_smi"] or "no nvidia-smi on PATH"
    lines += [f"           {_library(cuda['runtime'])} · {smi}", f"tensorrt   {_library(report['tensorrt'])}"]
    jetson = report["jetpack"]
    if jetson is None:
        lines.append("jetpack    not a Jetson: no /etc/nv_tegra_release, no Tegra in /proc/device-tree")
    else:
        l4t = f"L4T {jetson['l4t']}" if jetson["l4t"] else "no /etc/nv_tegra_release (a container?)"
        lines.append(f"jetpack    {jetson['jetpack'] or 'version unknown'} · {l4t} · {jetson['model']}")
    return lines


def _openvino(openvino: dict[str, Any] | None) -> str:
    if openvino is None:
        return "not installed"
    return f"{openvino['version']} · computes in {', '.join(openvino['capabilities'])}"


def _library(library: dict[str, Any]) -> str:
    found = f"{library['name']} {library['version'] or ''} ({library['found']})" if library["found"] else ""
    return " · ".join(filter(None, [found, f"not usable: {library['why_not']}" if library["why_not"] else ""]))
