"""The example app on recorded real data: it hears and sees what the model, sample by sample, hears and sees."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from real_models import Convert

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_digits_that_are_seen_and_heard_are_right(convert: Convert) -> None:
    made = convert("av_digits", "fp32")
    command = [str(EXAMPLES / "camera_microphone.py"), str(made.bundle), str(made.fixture.eval), "--seconds", "12"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"^(seen and heard|seen): (\d+) of (\d+) right", done.stdout, re.MULTILINE)
    right = {name: int(good) / int(count) for name, good, count in found}
    assert right["seen and heard"] > 0.9
    assert right["seen"] < right["seen and heard"]
