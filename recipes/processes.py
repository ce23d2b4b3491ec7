"""Runs `python -m MODULE` in processes that begin with the large packages loaded: that takes seconds otherwise."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

PRELOADED = (
    "torch",
    "torch.export.pt2_archive",
    "torch.onnx._internal.exporter._core",
    "sklearn.base",
    "matplotlib.pyplot",
    "onnxruntime",
    "openvino",
    "edgemm.cli.convert",
    "edgemm.pipeline",
    "recipes.prepare",
)
"""What trainings and conversions load first. A module that is not there is left out."""

FORKS = "forkserver" in multiprocessing.get_all_start_methods()
_context = multiprocessing.get_context("forkserver" if FORKS else "spawn")
if FORKS:
    _context.set_forkserver_preload(list(PRELOADED))


class StepError(RuntimeError):
    """The module ended with another status than 0; the message is the last of what it wrote to stderr."""


def run_module(module: str, *arguments: str, folder: Path) -> str:
    """Returns the stdout of `python -m MODULE ARGUMENTS` in `folder`.

    Raises:
        StepError: It fails.
    """
    with tempfile.TemporaryDirectory() as temporary:
        out, err = Path(temporary) / "out", Path(temporary) / "err"
        process = _context.Process(target=_child, args=(module, arguments, folder, out, err))  # type: ignore[attr-defined]
        process.start()
        process.join()
        if process.exitcode != 0:
            text = err.read_text(encoding="utf-8", errors="replace") if err.exists() else ""
            lines = [line.strip() for line in text.splitlines() if line.strip()]
            raise StepError(" ".join(lines[-2:])[-400:] or f"{module} ended with {process.exitcode}")
        return out.read_text(encoding="utf-8")


def _child(module: str, arguments: Sequence[str], folder: Path, out: Path, err: Path) -> None:
    for stream, path in ((1, out), (2, err)):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, stream)
        os.close(file)
    os.chdir(folder)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
