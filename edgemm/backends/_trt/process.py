"""The other end of the worker: starts it, listens, and ends it. A crash, a timeout and a refusal are one error."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from edgemm import errors
from edgemm.backends._trt.messages import ELSEWHERE, clean
from edgemm.backends._trt.request import BuildRequest
from edgemm.errors import BackendError, EdgemmError

ROOT = Path(__file__).resolve().parents[3]
"""The folder that `edgemm` is imported from."""

POLL = 0.1
"""Seconds between two looks at the clock."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a build is: `phase` is edgemm's or TensorRT's own name for it, `step` counts from 0 to `steps`."""

    phase: str
    step: int
    steps: int

    def __str__(self) -> str:
        return f"{self.phase} {self.step}/{self.steps}"


@dataclass(frozen=True, slots=True)
class Supervision:
    """How a build is watched.

    Attributes:
        timeout: Seconds until it is ended; None: never.
        progress: Called with every step.
        cancelled: Asked ten times a second; True ends the build.
    """

    timeout: float | None = 3600.0
    progress: Callable[[Progress], None] | None = None
    cancelled: Callable[[], bool] | None = None


def run_worker(request: BuildRequest, output: Path, watch: Supervision) -> dict[str, Any]:
    """Returns what the worker says of the engine that it has written to `output`.

    Raises:
        EdgemmError: As the worker raised it.
        BackendError: It crashed, took too long, or was cancelled.
    """
    with tempfile.TemporaryFile() as log, _worker(log) as process:
        listener = _Listener(request, watch)
        _ask(process, {"request": request.to_json(), "output": str(output)})
        for answer in listener.answers(process):
            if "built" in answer:
                built: dict[str, Any] = answer["built"]
                return built
            if "error" in answer:
                raise _error(answer["error"])
            listener.note(Progress(**answer["progress"]))
        raise _crashed(process, log, request, listener.last)


@contextmanager
def _worker(log: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Yields a worker in a session of its own: Ctrl-C in a terminal reaches the caller only, who ends it here."""
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemm.backends._trt.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        cwd=ROOT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _ask(process: subprocess.Popen[bytes], request: dict[str, Any]) -> None:
    assert process.stdin is not None
    with suppress(BrokenPipeError):  # it died: reading its answer says how
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()


class _Listener:
    """Hears a worker until it ends, is late or is cancelled, and keeps where it was last."""

    def __init__(self, request: BuildRequest, watch: Supervision) -> None:
        self.request, self.watch, self.last = request, watch, Progress("start", 0, 1)
        self.deadline = time.monotonic() + watch.timeout if watch.timeout is not None else None

    def note(self, progress: Progress) -> None:
        self.last = progress
        if self.watch.progress is not None:
            self.watch.progress(progress)

    def answers(self, process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
        assert process.stdout is not None
        buffer = b""
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            while True:
                self._check()
                if not selector.select(POLL):
                    continue
                block = os.read(process.stdout.fileno(), 1 << 16)
                if not block:
                    return
                *lines, buffer = (buffer + block).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    def _check(self) -> None:
        if self.watch.cancelled is not None and self.watch.cancelled():
            raise self.request.fail(
                f"the build was cancelled (it was at {self.last}).", "start it again when you want the engine"
            )
        if self.deadline is not None and time.monotonic() > self.deadline:
            raise self.request.fail(
                f"the build took longer than {self.watch.timeout:g} s (it was at {self.last}).",
                "allow more time, a lower optimization level, or keep a timing cache between builds",
            )


def _error(answer: dict[str, str]) -> EdgemmError:
    kind = getattr(errors, answer["type"], BackendError)
    error: EdgemmError = kind(answer["message"], hint=answer["hint"])
    return error


def _crashed(
    process: subprocess.Popen[bytes], log: IO[bytes], request: BuildRequest, last: Progress
) -> BackendError:
    """Returns what is known of a worker that ended without an answer."""
    code = process.wait()
    end = log.seek(0, os.SEEK_END)
    log.seek(max(0, end - 4096))
    said = [text for line in log.read().decode(errors="replace").splitlines() if (text := clean(line))]
    how = f"was ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    hint = f"update TensorRT if edgemm check finds nothing in the graph; {ELSEWHERE}"
    if code == -signal.SIGKILL:
        hint = "memory ran out, most likely: lower --max-memory, or close other programs"
    return request.fail(
        f"the process that builds the engine {how} (it was at {last})" + (f": {said[-1]}." if said else "."), hint
    )
