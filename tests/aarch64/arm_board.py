"""Boards as the emulator shows them, and how to run a program on one."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arm_root import NotReady, make_root, tool
from device_side import ROOT, device_files

HERE = Path(__file__).parent
SECONDS = 900
"""A program that takes longer is ended: the emulator can hang when what it emulates crashes."""


@dataclass(frozen=True)
class Board:
    """A processor that ONNX Runtime has kernels of their own for.

    Attributes:
        name: For test ids and files.
        cpu: The emulator's processor.
        part: Implementer and part number, as the kernel of such a board shows them.
        model: What `describe_machine` calls the cores.
        features: Flags in /proc/cpuinfo, of those that the emulator has.
    """

    name: str
    cpu: str
    part: tuple[int, int]
    model: str
    features: str

    def cpuinfo(self) -> str:
        """Returns /proc/cpuinfo of the board with as many cores as this machine has."""
        implementer, part = self.part
        core = (
            "processor\t: {at}\nBogoMIPS\t: 108.00\n"
            f"Features\t: {self.features}\nCPU implementer\t: {implementer:#x}\nCPU architecture: 8\n"
            f"CPU variant\t: 0x0\nCPU part\t: {part:#05x}\nCPU revision\t: 1\n\n"
        )
        return "".join(core.format(at=at) for at in range(os.cpu_count() or 1))


_OLD = "fp asimd aes pmull sha1 sha2 crc32 cpuid"
_DOT = f"{_OLD} atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
BOARDS = (
    Board("raspberry-pi-4", "cortex-a72", (0x41, 0xD08), "Cortex-A72", _OLD),
    Board("jetson-orin", "cortex-a76", (0x41, 0xD42), "Cortex-A78AE", _DOT),
    Board(
        "jetson-thor",
        "max,sme=off,sve-max-vq=1,pauth-impdef=on",
        (0x41, 0xD83),
        "Neoverse-V3AE",
        f"{_DOT} sve sve2 svei8mm svebf16 i8mm bf16",
    ),
)
"""Without the dot product of int8; with it; with the matrix product of int8, bf16 and SVE as well.

The emulator has no Cortex-A78AE; its Cortex-A76 has the instructions of one that ONNX Runtime asks for.
SME, which no Jetson has, is off: with the emulator's, ONNX Runtime's dynamic int8 kernel gives wrong answers.
"""


class Emulator:
    """Runs Python programs on a board, with the device side of edgemm, numpy and ONNX Runtime and nothing else."""

    def __init__(self, kept: Path, scratch: Path) -> None:
        """Makes the arm64 root, or finds it, and copies what ships to the device.

        Args:
            kept: Folder for the root, used again.
            scratch: Folder for this run.

        Raises:
            NotReady: Something is missing here.
        """
        self.root, self.site = make_root(kept)
        self.device, self.scratch = scratch / "device", scratch
        for file in device_files():
            target = self.device / file
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / file, target)
        shutil.copyfile(HERE / "arm_device.py", self.device / "arm_device.py")

    def run(self, board: Board, command: Sequence[str], **binds: Path) -> str:
        """Returns the stdout of `command`; `cases=path` shows the folder `path` as /cases."""
        cpuinfo = self.scratch / f"{board.name}.cpuinfo"
        cpuinfo.write_text(board.cpuinfo())
        enter = [tool("unshare"), "--user", "--map-root-user", "--mount", "--net", "--fork", "--kill-child"]
        enter += [
            "bash",
            str(HERE / "enter.sh"),
            str(self.root),
            tool("qemu-aarch64-static"),
            board.cpu,
            str(cpuinfo),
        ]
        places = {"device": self.device, "site": self.site, **binds}
        enter += [f"{path}:/{name}" for name, path in places.items()]
        done = subprocess.run(
            [*enter, "--", *command], capture_output=True, text=True, timeout=SECONDS, check=False
        )
        if done.returncode and "unshare:" in done.stderr:
            raise NotReady(f"this machine does not let {tool('unshare')} make namespaces: {done.stderr.strip()}")
        assert done.returncode == 0, (
            f"{command} ended with {done.returncode}:\n{done.stdout[-2000:]}{done.stderr[-4000:]}"
        )
        assert done.stderr == "", done.stderr
        return done.stdout

    def run_cases(self, board: Board, cases: Path) -> dict[str, Any]:
        """Returns what arm_device.py tells; the outputs lie in `cases/NAME/BOARD.npz`."""
        command = ["/usr/bin/python3", "-W", "error", "/device/arm_device.py", "/cases", board.name]
        return dict(json.loads(self.run(board, command, cases=cases)))


def run_cases_here(device: Path, cases: Path, tag: str) -> dict[str, Any]:
    """Returns what the same program tells on this machine."""
    command = [sys.executable, str(device / "arm_device.py"), str(cases), tag]
    env = os.environ | {"PYTHONPATH": str(device)}
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=SECONDS, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))
