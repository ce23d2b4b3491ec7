"""Calls the command line as a user does: in this process for speed, in a fresh one for proof."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from edgemm.cli import main

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def edgemm(capfd):
    """Runs `edgemm ARGS...` in this process."""

    def call(*args: object) -> Result:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(a) for a in args])
        captured = capfd.readouterr()
        return Result(int(ended.value.code or 0), captured.out, captured.err)

    return call


@pytest.fixture
def edgemm_process(tmp_path: Path):
    """Runs `python -m edgemm ARGS...` in a fresh process, below `tmp_path`."""

    def call(*args: object, path: tuple[Path, ...] = (), **environment: str) -> Result:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT]))} | environment
        done = subprocess.run(
            [sys.executable, "-m", "edgemm", *map(str, args)],
            capture_output=True,
            text=True,
            env=env,
            cwd=tmp_path,
            timeout=300,
            check=False,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    return call
