"""Runs one command and writes what it took: `python child.py REPORT SECONDS MEGABYTES COMMAND ...`.

A process of its own, because the peak memory that the kernel reports of a child starts at that of the process
which made it: the benchmark, with its models and sessions, is too big for that. Standard library only.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

_PAUSE = 0.05


def resident(pid: int) -> float:
    """Returns the memory that a process holds, in MB; 0 when it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0.0
    lines = [line for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(lines[0].split()[1]) / 1024 if lines else 0.0


def main() -> None:
    """Runs the command, ends it when it takes too long or too much, and writes the report."""
    report, seconds, megabytes = Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3])
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    start = time.perf_counter()
    process = subprocess.Popen(sys.argv[4:], start_new_session=True)
    stopped, done = None, 0
    try:
        while True:
            done, status, usage = os.wait4(process.pid, os.WNOHANG)
            if done:
                break
            if stopped is None and time.perf_counter() - start > seconds:
                stopped = f"stopped after {seconds:.0f} s"
            if stopped is None and resident(process.pid) > megabytes:
                stopped = f"stopped at {megabytes:.0f} MB of memory"
            if stopped is not None:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(_PAUSE)
    finally:
        if not done:  # this process is told to end: so is the other
            os.killpg(process.pid, signal.SIGKILL)
    taken = {"seconds": time.perf_counter() - start, "peak_memory_mb": usage.ru_maxrss / 1024}
    report.write_text(json.dumps({"code": os.waitstatus_to_exitcode(status), "stopped": stopped, **taken}))


if __name__ == "__main__":
    main()
