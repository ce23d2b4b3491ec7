"""The process that builds: `python -m edgemm.backends._trt.worker`, a request in, lines of JSON out.

The first line of standard input is the request; when standard input ends, whoever asked is gone, and so is this
process. Lines of standard output are objects with one key: `progress`, `built` or `error`. What TensorRT prints by
itself goes to standard error.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import IO, Any

from edgemm.backends._trt.build import build_plan
from edgemm.backends._trt.request import BuildRequest
from edgemm.errors import EdgemmError
from edgemm.runtime._trt.module import load_module

SECONDS = 0.1
"""Between two reports of one phase."""


def main() -> None:
    """Serves one request."""
    lines = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    asked = json.loads(sys.stdin.buffer.readline())
    request, output = BuildRequest.from_json(asked["request"]), Path(asked["output"])
    threading.Thread(target=_follow, args=(output,), daemon=True).start()
    try:
        _say(lines, _answer(request, output, _Reporter(lines)))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)  # at once: TensorRT's threads and destructors have nothing to add, and may crash


def _answer(request: BuildRequest, output: Path, report: _Reporter) -> dict[str, Any]:
    try:
        sidecar, warnings = build_plan(load_module(request.module), request, output, report)
    except EdgemmError as error:
        return {"error": {"type": type(error).__name__, "message": str(error), "hint": error.hint}}
    except OSError as error:
        message = f"{request.where}: {error.filename or output.parent}: {error.strerror or error}."
        hint = "free some space there, or choose another folder"
        return {"error": {"type": "BackendError", "message": message, "hint": hint}}
    return {"built": {"sidecar": sidecar.to_json(), "warnings": list(warnings)}}


def _follow(output: Path) -> None:
    """Ends this process, and takes away what it has written, when the process that asked is gone."""
    while os.read(0, 1 << 16):
        pass
    output.unlink(missing_ok=True)
    os._exit(1)


class _Reporter:
    """Says where the build is, not more often than people and pipes like."""

    def __init__(self, lines: IO[str]) -> None:
        self.lines, self.phase, self.at, self.lock = lines, "", 0.0, threading.Lock()

    def __call__(self, phase: str, step: int, steps: int) -> None:
        with self.lock:
            now = time.monotonic()
            if phase == self.phase and now - self.at < SECONDS and step < steps:
                return
            self.phase, self.at = phase, now
            _say(self.lines, {"progress": {"phase": phase, "step": step, "steps": steps}})


def _say(lines: IO[str], answer: dict[str, Any]) -> None:
    lines.write(json.dumps(answer) + "\n")
    lines.flush()


if __name__ == "__main__":
    main()
