"""Which built engines of a bundle are not what the manifest says. `verify` leaves them to whoever loads one."""

from __future__ import annotations

import stat
from pathlib import Path

from edgemm.bundle.engines import built_files, engine_of
from edgemm.bundle.manifest import Manifest
from edgemm.bundle.store import being_added, file_sha256, found_files, kind_of


def damage(path: Path, manifest: Manifest, name: str) -> str | None:
    """Returns how a file differs from what the manifest says, in words that complete "it ...", or None."""
    entry, file = manifest.files.get(name), Path(path) / name
    if entry is None:
        return "is not in the manifest"
    try:
        status = file.lstat()
    except FileNotFoundError:
        return "is missing"
    if not stat.S_ISREG(status.st_mode):
        return f"is a {kind_of(status.st_mode)}"
    if status.st_size != entry["size"] or file_sha256(file) != entry["sha256"]:
        return "was changed after it was built"
    return None


def engine_damage(path: Path, manifest: Manifest, engine: str) -> str | None:
    """Returns what is wrong with a built engine or with its sidecar, as `damage`, or None."""
    sidecar = damage(path, manifest, f"{engine}.json")
    return damage(path, manifest, engine) or (f"has a sidecar that {sidecar}" if sidecar else None)


def damaged_engines(path: Path, manifest: Manifest) -> dict[str, str]:
    """Returns built engine -> what is wrong with it: it or its sidecar is missing, changed, not listed.

    Args:
        path: A bundle that was verified.
        manifest: Of it.
    """
    found = found_files(Path(path)).keys() - being_added(path)
    engines = {engine_of(name) for name in built_files(manifest, (*manifest.files, *found))}
    reasons = {engine: engine_damage(path, manifest, engine) for engine in sorted(engines)}
    return {engine: reason for engine, reason in reasons.items() if reason is not None}
