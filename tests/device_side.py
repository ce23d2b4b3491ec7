"""Which files ship to the device: what `edgemm.runtime` and everything below it consist of."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("__init__.py", "errors.py", "_optional.py", "tensors.py", "compare.py", "bundle", "runtime", "profiling")
"""Files and folders of the package, relative to it."""


def device_files() -> list[Path]:
    """Returns the Python files of the device side, relative to the repository, sorted."""
    package = ROOT / "edgemm"
    found: list[Path] = []
    for part in PARTS:
        place = package / part
        assert place.exists(), place
        found += place.rglob("*.py") if place.is_dir() else [place]
    return sorted(path.relative_to(ROOT) for path in found)
