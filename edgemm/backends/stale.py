"""Which built engines a bundle can do without: damaged ones, and those that its plans no longer ask for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from edgemm.bundle import EngineEntry, Manifest, damaged_engines, drop_engines, read_manifest
from edgemm.errors import BackendError
from edgemm.runtime._trt.engines import engines_of, other_plan
from edgemm.runtime._trt.sidecar import Sidecar, load_sidecar


@dataclass(frozen=True, slots=True)
class DroppedEngine:
    """A built engine that was taken out of its bundle, and why, in words that complete "it ..."."""

    file: str
    reason: str


def drop_damaged(path: Path) -> tuple[DroppedEngine, ...]:
    """Drops the built engines that are missing, changed or not in the manifest; the bundle was verified.

    Raises:
        BundleError: The bundle cannot be written.
    """
    if not damaged_engines(path, read_manifest(path)):
        return ()
    return _told(drop_engines(path, lambda manifest: damaged_engines(path, manifest)))


def drop_outdated(
    path: Path, entries: Iterable[EngineEntry], current: Mapping[str, Sidecar]
) -> tuple[DroppedEngine, ...]:
    """Drops built engines that no present plan uses and that were built for the same device as the current ones.

    Engines for another GPU, or by another TensorRT, stay: they may be for another machine.

    Args:
        path: The bundle.
        entries: Whose engines to look at, with the present plan.
        current: Name of an entry -> sidecar of the engine that it has now.

    Raises:
        BundleError: The bundle cannot be written.
    """
    asked = tuple(entries)

    def outdated(manifest: Manifest) -> dict[str, str]:
        found = {}
        for entry in asked:
            for file in engines_of(manifest.files, entry.file):
                reason = _outdated(path, manifest, entry, file, current[entry.name])
                if reason is not None:
                    found[file] = reason
        return found

    return _told(drop_engines(path, outdated)) if outdated(read_manifest(path)) else ()


def _outdated(path: Path, manifest: Manifest, entry: EngineEntry, file: str, current: Sidecar) -> str | None:
    try:
        sidecar = load_sidecar(path / file)
    except BackendError:
        return None  # damaged meanwhile: the next build drops it
    if _device(sidecar) != _device(current):
        return None
    graph = str(manifest.files[entry.file]["sha256"])
    return other_plan(sidecar, onnx_sha256=graph, module=current.flavour, options=entry.options)


def _device(sidecar: Sidecar) -> tuple[object, ...]:
    return (sidecar.flavour, sidecar.version, sidecar.compute_capabilities, dict(sidecar.device))


def _told(dropped: Mapping[str, str]) -> tuple[DroppedEngine, ...]:
    return tuple(DroppedEngine(file, reason) for file, reason in dropped.items())
