"""Runs one command and writes what it took: `python child.py REPORT SECONDS MEGABYTES COMMAND ...`.

A process of its own, because the peak memory that the kernel reports of a child starts at that of the process
which made it: the benchmark, with its models and sessions, is too big for that. Processes that the command makes
count too: the peak is the largest sum of them, and no less than the kernel's for one. Standard library only.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PAUSE = 0.05


def resident(session: int) -> float:
    """Returns the memory that the processes of a session hold, in MB; 0 when all have ended."""
    pages = 0
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with contextlib.suppress(OSError):  # it has ended
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                pages += int(fields[21]) if int(fields[3]) == session else 0
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def main() -> None:
    """Runs the command, ends it when it takes too long or too much, and writes the report."""
    report, seconds, megabytes = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[4:], start_new_session=True)
    stopped, done, peak = None, 0, 0.0
    try:
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if stopped is None and time.perf_counter() - start > seconds:
                stopped = f"stopped after {seconds:.0f} s"
            peak = max(peak, resident(process.pid))
            if stopped is None and peak > megabytes:
                stopped = f"stopped at {megabytes:.0f} MB of memory"
            if stopped is not None:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(_PAUSE)
    finally:
        if not done:  # this process is told to end: so is the other
            os.killpg(process.pid, signal.SIGKILL)
    taken = {"seconds": time.perf_counter() - start, "peak_memory_mb": max(peak, usage.ru_maxrss / 1024)}
    report.write_text(json.dumps({"code": os.waitstatus_to_exitcode(status), "stopped": stopped, **taken}))


if __name__ == "__main__":
    main()
