"""Makes a root file system of Debian arm64 with Python, numpy and ONNX Runtime; kept, and made only once.

debootstrap resolves, fetches and verifies the packages from the mirror that apt is set up with. They are unpacked
and not configured: Python does not need that, nothing is emulated for it, and nobody has to be root. The wheels
come from the index that pip is set up with, in the versions that this environment has.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

TOOLS = {
    "debootstrap": "debootstrap",
    "dpkg-deb": "dpkg",
    "qemu-aarch64-static": "qemu-user-static",
    "unshare": "util-linux",
}
"""Command -> Debian package that has it."""

MIRROR, SUITE = "EDGEMM_AARCH64_MIRROR", "EDGEMM_AARCH64_SUITE"
WHEELS = ("numpy", "onnxruntime")
GLIBC = (17, 26, 27, 28, 31, 34, 35)
"""2.N of the manylinux tags that wheels for arm64 carry and Debian 12 can load."""

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
_VERSION = 1
"""Raised when the root is to be made in another way."""


class NotReady(Exception):
    """Something is missing on this machine; the message says what to install or to set."""


def tool(name: str) -> str:
    """Returns the path of a command of `TOOLS`.

    Raises:
        NotReady: Commands are missing; all of them are named.
    """
    missing = sorted({package for command, package in TOOLS.items() if not shutil.which(command, path=_PATH)})
    if missing:
        raise NotReady(f"make test-aarch64 needs: apt install --no-install-recommends {' '.join(missing)}")
    return str(shutil.which(name, path=_PATH))


def make_root(folder: Path) -> tuple[Path, Path]:
    """Returns the root and the folder with the wheels below `folder`; makes what is not there yet.

    Raises:
        NotReady: With the end of what the tool that failed has said.
    """
    folder.mkdir(parents=True, exist_ok=True)
    root, site = folder / "root", folder / "site"
    mirror, suite = _mirror()
    made = {"version": _VERSION, "suite": suite}
    if _made(root) != made:
        part = _fresh(folder / "root.part")
        _unpack(_fetch(_fresh(folder / "debs"), mirror, suite), part)
        _finish(part, root, made)
    python = next(p.name for p in sorted((root / "usr/bin").iterdir()) if re.fullmatch(r"python3\.\d+", p.name))
    wheels = {name: metadata.version(name) for name in WHEELS}
    made |= {"python": python, **wheels}
    if _made(site) != made:
        part = _fresh(folder / "site.part")
        _install(part, python.removeprefix("python"), wheels)
        _finish(part, site, made)
    return root, site


def _mirror() -> tuple[str, str]:
    """Returns address and suite of the Debian mirror that has arm64: the one that apt uses here."""
    if MIRROR in os.environ and SUITE in os.environ:
        return os.environ[MIRROR], os.environ[SUITE]
    found = ""
    if shutil.which("apt-get"):
        template = ["--format", "$(ORIGIN) $(REPO_URI) $(RELEASE)", "Created-By: Packages"]
        found = subprocess.run(["apt-get", "indextargets", *template], capture_output=True, text=True).stdout
    for line in found.splitlines():
        origin, _, rest = line.partition(" ")
        if origin == "Debian" and "-" not in rest.split()[-1]:  # not bookworm-updates, bookworm-security
            mirror, suite = rest.split()
            return mirror, suite
    raise NotReady(
        "apt has no Debian mirror here: run apt-get update, or name one that has arm64 and its release: "
        f"{MIRROR}=... {SUITE}=bookworm make test-aarch64"
    )


def _fetch(folder: Path, mirror: str, suite: str) -> Path:
    """Returns the folder that debootstrap has put the .deb files in."""
    # in a user namespace nobody can make device nodes, and debootstrap tries unless it is told that it cannot
    command = [tool("unshare"), "--user", "--map-root-user", "--mount", "env", "container=lxc"]
    command += [tool("debootstrap"), "--download-only", "--arch=arm64", "--variant=minbase", "--include=python3"]
    _call([*command, suite, str(folder), mirror])
    return folder / "var/cache/apt/archives"


def _unpack(packages: Path, root: Path) -> None:
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    options = ["--no-same-owner", "--keep-directory-symlink"]
    for package in sorted(packages.glob("*.deb")):
        with subprocess.Popen([tool("dpkg-deb"), "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as read:
            _call(["tar", "-x", *options, "-C", str(root)], stdin=read.stdout)
        if read.returncode:
            raise NotReady(f"dpkg-deb cannot read {package.name}: remove {packages} and call again")


def _install(site: Path, python: str, wheels: dict[str, str]) -> None:
    platforms = [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC] + [
        "--platform=manylinux2014_aarch64"
    ]
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-compile"]
    command += ["--only-binary=:all:", "--implementation=cp", f"--python-version={python}", *platforms]
    _call([*command, f"--target={site}", *(f"{name}=={version}" for name, version in wheels.items())])


def _call(command: Sequence[str], stdin: object = None) -> None:
    env = os.environ | {"PATH": _PATH}
    done = subprocess.run(command, stdin=stdin, capture_output=True, text=True, env=env)  # type: ignore[call-overload]
    if done.returncode:
        said = " | ".join((done.stdout + done.stderr).strip().splitlines()[-6:])
        raise NotReady(f"{' '.join(command)} failed ({done.returncode}): {said}")


def _made(place: Path) -> dict[str, object] | None:
    try:
        return dict(json.loads((place / "made.json").read_text()))
    except (OSError, ValueError):
        return None


def _fresh(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    return folder


def _finish(part: Path, place: Path, made: dict[str, object]) -> None:
    (part / "made.json").write_text(json.dumps(made))
    shutil.rmtree(place, ignore_errors=True)
    part.rename(place)
