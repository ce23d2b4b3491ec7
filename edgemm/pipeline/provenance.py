"""What made a bundle: tool versions, and the machine and time of what was measured."""

from __future__ import annotations

from datetime import datetime, timezone
from importlib import metadata
from typing import Any

from edgemm import __version__
from edgemm.runtime.machine import describe_machine

TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")


def tool_versions() -> dict[str, str]:
    """Returns the version of edgemm and of every tool that shaped the engines and is installed."""
    versions = {"edgemm": __version__}
    for name in TOOLS:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def measured_here(threads: int) -> dict[str, Any]:
    """Returns when and on what machine this conversion measured."""
    return {
        "created": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "machine": describe_machine().to_json() | {"threads": threads or "default"},
    }
