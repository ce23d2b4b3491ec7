"""What a bundle says about itself: stages, variants, signature, digests. Device side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from edgemm.bundle.schedule import Schedule
from edgemm.tensors import IOSpec, TensorSpec

SCHEMA = 1
"""Version of the manifest's structure. A reader refuses a newer one."""

FORMAT = "edgemm-bundle"
"""Value of the manifest's `format` key; tells a bundle from any other directory with a `manifest.json`."""

MANIFEST = "manifest.json"
"""File name of the manifest at the root of the bundle."""

CACHE = "cache"
"""Folder of a bundle for what a device makes for itself and may throw away. Its files are not verified."""

ADDING = f"{CACHE}/adding.json"
"""Names the files that are being added to a bundle."""


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
    """One engine file: the stages it covers (all of them in a `whole` layout), its IO, its precision.

    Attributes:
        name: Unique in the variant.
        stages: Names of the stages inside.
        file: Path below the bundle.
        inputs: Names of what it takes.
        outputs: Names of what it gives.
        decisions: Precision -> nodes, for example `{"int8": 12, "fp32": 3}`.
        backend: Name in `edgemm.runtime.registry`; left empty it is the variant's.
        options: How to open it: `threads`, the most that it profits from, and `precision`, `"bf16"` for what the
            graph leaves in float32. Of a graph for TensorRT: `module` (`"tensorrt"` or `"tensorrt_rtx"`),
            `profiles`, `precisions` of its tensors, and `build`, the builder's options that were asked for.
    """

    name: str
    stages: tuple[str, ...]
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    decisions: Mapping[str, int]
    backend: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Variant:
    """The model as planned for one target. A refused variant has no engines, only its reason.

    Attributes:
        name: Unique in the bundle, for example `"cpu-int8"`.
        target: Name in the catalogue of targets, `"cpu"` or `"jetson-orin-nano"` for example.
        backend: Backends of the engines, sorted and joined by `+`: `"onnxruntime"`, `"onnxruntime+openvino"`.
        precision: `"int8"` or `"fp32"`: what was asked of the planner; see `decisions` for what came out.
        layout: `"staged"` (one engine per stage) or `"whole"`.
        engines: In execution order.
        decisions: Precision -> number of nodes.
        size_bytes: Sum of the engine files.
        accuracy: `{metric, float, variant, drop, budget, samples, ...}` on the evaluation split, or None. With
            `simulated` it is that of the graphs on a CPU, not of engines on their device.
        refused: Why it was not shipped, or None.
        schedule: How engines on a CPU share its cores; None is one after the other.
        reuse: Of a variant with one engine for the whole graph: the variant with one per stage, of the same plan,
            that runs calls in which something is unchanged. Empty is none.
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
    schedule: Schedule | None = None
    reuse: str = ""

    def __post_init__(self) -> None:
        named = tuple(e if e.backend else replace(e, backend=self.backend) for e in self.engines)
        object.__setattr__(self, "engines", named)

    def refuse(self, reason: str) -> Variant:
        """Returns the record of this variant in a bundle that does not ship it."""
        return replace(self, engines=(), size_bytes=0, refused=reason, schedule=None, reuse="")


@dataclass(frozen=True, slots=True)
class StandIn:
    """What goes in the place of a modality that has no sample.

    Attributes:
        modality: That lacks.
        fill: What a stream's policy calls it: `"blank"`, `"mean"` or `"learned"`.
        arrays: Input of the model, or output of its encoder -> an `.npy` file below the bundle with one row of it
            (without the batch axis), or the number that all of it is.
        variant: The only variant that it fits; empty is every one. What a head expects of an encoder differs
            between variants: repairs move factors from one to the other.
    """

    modality: str
    fill: str
    arrays: Mapping[str, str | float]
    variant: str = ""


@dataclass(frozen=True, slots=True)
class HeadEntry:
    """Another head for the model, for sets that lack a modality that it does not take: the fill `head:NAME`.

    Attributes:
        name: Unique in the bundle.
        modalities: Those whose encoders it reads from.
        file: Path of its engine below the bundle.
        inputs: Outputs of encoders, or inputs of the model, that it takes.
        outputs: Results of the model that it gives: all of them.
        backend: What runs it, a name in `edgemm.runtime.registry`.
        variants: Those whose encoders give what it was trained on.
    """

    name: str
    modalities: tuple[str, ...]
    file: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    backend: str
    variants: tuple[str, ...]


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
            `parity`, `data` (splits and digests), `float_size_bytes`, `preprocess_bytes` (of these, and of an
            engine, the constants of steps in the graph), `tools` (versions).
        measured: Everything that differs from run to run: `created`, `machine`, `seconds`, `latency` per variant
            (`measured["latency"][variant.name]`).
        files: Relative path -> `{sha256, size}` of every file but the manifest.
        schema: Version of the structure, `SCHEMA` for what this edgemm writes.
        stream: Fields of `edgemm.runtime.stream_policy.StreamPolicy` that the recipe sets: defaults of streams.
        stand_ins: For modalities without a sample.
        heads: For sets without some modalities.
        preprocess: Steps that run on the host, `edgemm.preprocess.front.InputSteps` as JSON: a session takes raw
            arrays in the place of inputs of `io`.
        least: Symbolic dimension of `io` -> the smallest size that steps in the graph take: samples of sound for
            one frame of a spectrum.
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
    stream: Mapping[str, Any] = field(default_factory=dict)
    stand_ins: tuple[StandIn, ...] = ()
    heads: tuple[HeadEntry, ...] = ()
    preprocess: tuple[Mapping[str, Any], ...] = ()
    least: Mapping[str, int] = field(default_factory=dict)

    @property
    def shipped(self) -> tuple[Variant, ...]:
        """The variants that have engines, in the order in which a session prefers them."""
        return tuple(v for v in self.variants if v.engines and v.refused is None)

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values; equal manifests give equal text. `from_json` is its inverse.

        Raises:
            BundleError: A value is not JSON (NaN, an object); the message says where.
        """
        from edgemm.bundle.codec import manifest_to_json

        return manifest_to_json(self)

    @classmethod
    def from_json(cls, data: object) -> Manifest:
        """Returns the manifest that `to_json` wrote.

        Raises:
            BundleError: A newer schema, a missing key or a value of the wrong type; the message says where.
        """
        from edgemm.bundle.codec import manifest_from_json

        return manifest_from_json(data)
