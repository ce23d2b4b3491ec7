"""Built engines in a bundle: how they are named, which are whole. They are derived data: what is lost is rebuilt.

engines/rtx-ampere-int8/image.onnx                        the planned graph, portable
engines/rtx-ampere-int8/image.1f0c9a55d2e7.engine         built from it; the key is a digest of what it is for
engines/rtx-ampere-int8/image.1f0c9a55d2e7.engine.json    its sidecar
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edgemm.bundle.manifest import Manifest

KEY_DIGITS = 12
"""Hex digits of a key."""

_NAME = re.compile(rf"(?P<stem>.+)\.[0-9a-f]{{{KEY_DIGITS}}}\.engine(?P<sidecar>\.json)?", re.DOTALL)


def engine_path(graph: str, key: str) -> str:
    """Returns the engine's place: for the graph `"engines/v/image.onnx"` it is `"engines/v/image.KEY.engine"`."""
    return f"{_stem(graph)}.{key}.engine"


def engines_of(files: Iterable[str], graph: str) -> list[str]:
    """Returns the built engines of `graph` among `files` that have a sidecar, sorted by name."""
    known = set(files)
    pattern = re.compile(re.escape(_stem(graph)) + rf"\.[0-9a-f]{{{KEY_DIGITS}}}\.engine")
    return sorted(f for f in known if pattern.fullmatch(f) and f"{f}.json" in known)


def built_files(manifest: Manifest, names: Iterable[str]) -> frozenset[str]:
    """Returns those of `names` that are a built engine, or the sidecar of one, of a graph for TensorRT.

    What a variant itself opens is none, whatever its name.
    """
    entries = [e for v in manifest.variants for e in v.engines]
    opened = {e.file for e in entries}
    stems = {_stem(e.file) for e in entries if "module" in e.options}

    def is_built(name: str) -> bool:
        found = _NAME.fullmatch(name)
        return found is not None and found["stem"] in stems and name not in opened

    return frozenset(filter(is_built, names))


def engine_of(name: str) -> str:
    """Returns the engine that a built file is or belongs to: `"x.KEY.engine.json"` gives `"x.KEY.engine"`."""
    return name.removesuffix(".json")


def _stem(graph: str) -> str:
    return graph[: -len(".onnx")] if graph.endswith(".onnx") else graph
