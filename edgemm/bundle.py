"""The bundle: a directory with a manifest, one file per engine, and a digest for each. Device side.

x.edgemm/
manifest.json                  schema version, signature, stages, variants, sha256 of every other file
recipe.json                    what was asked for
engines/<variant>/<stage>.onnx one engine per stage (or one for the whole graph)
plans/<variant>.json           every quantization decision with its rule and reason
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemm.tensors import IOSpec, TensorSpec

SCHEMA = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class StageEntry:
    """A stage as the manifest describes it (see `edgemm.partition.Stage`)."""

    name: str
    modalities: tuple[str, ...]
    role: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    nodes: int
    parameters: int


@dataclass(frozen=True, slots=True)
class EngineEntry:
    """One engine file: the stages it covers (all of them in a `whole` layout), its IO, its precision."""

    name: str
    stages: tuple[str, ...]
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    decisions: Mapping[str, int]  # precision -> nodes, e.g. {"int8": 12, "fp32": 3}


@dataclass(frozen=True, slots=True)
class Variant:
    """The model as planned for one target. A refused variant has no engines, only its reason.

    Attributes:
        name: Unique in the bundle, for example `"cpu-int8"`.
        target: `"cpu"`, later `"jetson-orin-nano"` and others.
        backend: Name in `edgemm.runtime.registry`.
        precision: `"int8"` or `"fp32"`: what was asked of the planner; see `decisions` for what came out.
        layout: `"staged"` (one engine per stage) or `"whole"`.
        engines: In execution order.
        decisions: Precision -> number of nodes.
        size_bytes: Sum of the engine files.
        accuracy: `{metric, float, variant, drop, budget, samples, ...}` on the evaluation split, or None.
        refused: Why it was not shipped, or None.
    """

    name: str
    target: str
    backend: str
    precision: str
    layout: str
    engines: tuple[EngineEntry, ...]
    decisions: Mapping[str, int]
    size_bytes: int
    accuracy: Mapping[str, Any] | None = None
    refused: str | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is in a bundle.

    Attributes:
        name: File name stem of the model.
        io: The fused model's signature.
        stages: In topological order.
        joins: `{node, op, kind, stage, sources}` each.
        variants: Shipped ones first; at least one has engines.
        info: What only people and reports read: `model` (source, kind, sha256, parameters, opset), `dynamic`,
            `parity`, `data` (splits and digests), `float_size_bytes`, `tools` (versions).
        measured: Everything that differs from run to run: `created`, `machine`, `seconds`, `latency` per variant.
        files: Relative path -> `{sha256, size}` of every file but the manifest.
    """

    name: str
    io: IOSpec
    stages: tuple[StageEntry, ...]
    joins: tuple[Mapping[str, Any], ...]
    variants: tuple[Variant, ...]
    info: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    schema: int = SCHEMA


def write_bundle(
    path: Path, manifest: Manifest, files: Mapping[str, bytes], *, force: bool = False
) -> Manifest:
    """Writes a bundle atomically (temporary sibling, then rename) and returns the manifest with digests."""
    raise NotImplementedError


def read_manifest(path: Path) -> Manifest:
    """Returns the manifest of the bundle at `path` after checking its schema and structure."""
    raise NotImplementedError


def verify(path: Path, manifest: Manifest) -> None:
    """Checks every file of the bundle against the manifest before anything is loaded."""
    raise NotImplementedError
