"""A virtual environment per peer, made once and made again when its requirements change."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from benchmarks.peers.registry import FOLDER

PLACE = Path(".cache/edgemm/peers")
_LONGEST = 1800


class InstallError(RuntimeError):
    """A peer's packages cannot be installed; the text is the reason."""


def python_of(environment: str | None) -> Path:
    """Returns the interpreter of a peer's environment, made now unless it is there with the same requirements.

    Args:
        environment: Its name: `requirements/NAME.txt` is installed, then `requirements/NAME-nodeps.txt` (where
            there is one) without dependencies. None is the environment that runs this.

    Raises:
        InstallError: pip failed.
    """
    if environment is None:
        return Path(sys.executable)
    place = PLACE.absolute() / environment
    python, stamp = place / "bin" / "python", place / "installed.sha256"
    files = [FOLDER / "requirements" / f"{environment}{suffix}.txt" for suffix in ("", "-nodeps")]
    digest = hashlib.sha256(b"".join(f.read_bytes() for f in files if f.exists())).hexdigest()
    if stamp.exists() and stamp.read_text() == digest:
        return python
    shutil.rmtree(place, ignore_errors=True)
    _call([sys.executable, "-m", "venv", str(place)])
    for file, more in zip(files, ([], ["--no-deps"]), strict=True):
        if file.exists():
            _call([str(python), "-m", "pip", "install", "--quiet", *more, "-r", str(file)])
    _opt_out(place / "home")
    stamp.write_text(digest)
    return python


def home_of(python: Path) -> Path:
    """Returns the home folder that a peer is given: settings and caches of the user have no part in the result."""
    home = (PLACE.absolute() / "home") if python == Path(sys.executable) else python.parents[1] / "home"
    _opt_out(home)
    return home


def versions_of(python: Path, packages: Sequence[str]) -> dict[str, str]:
    """Returns the installed versions of `packages`."""
    code = "import importlib.metadata as m, json, sys; print(json.dumps({p: m.version(p) for p in sys.argv[1:]}))"
    called = subprocess.run([str(python), "-c", code, *packages], capture_output=True, text=True, check=True)
    return dict(json.loads(called.stdout))


def _opt_out(home: Path) -> None:
    """Refuses the usage reports of OpenVINO's packages, which look for consent in this file."""
    (home / "intel").mkdir(parents=True, exist_ok=True)
    (home / "intel" / "openvino_telemetry").write_text("0")


def _call(command: list[str]) -> None:
    try:
        called = subprocess.run(command, capture_output=True, text=True, timeout=_LONGEST, check=False)
    except subprocess.TimeoutExpired as error:
        raise InstallError(f"not installed: pip took more than {_LONGEST} s") from error
    if called.returncode:
        errors = [line for line in called.stderr.splitlines() if line.startswith("ERROR")]
        raise InstallError("not installed: " + (errors or called.stderr.splitlines() or ["no reason given"])[-1])
