"""The sidecar: what a TensorRT engine is, in a JSON file beside it. An engine cannot be read without its GPU."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from edgemm.errors import BackendError
from edgemm.tensors import ShapeRange, TensorSpec

FORMAT = 1
"""Raised when older code could misread a sidecar."""

MAX_BYTES = 64 * 2**20
"""Largest sidecar that is read."""


@dataclass(frozen=True, slots=True)
class OptimizationProfile:
    """The shapes that an engine accepts and is fastest at.

    Attributes:
        shapes: Input -> smallest, usual and largest shape.
        values: Input -> the same for the values of inputs that are shapes themselves (`k` of a TopK).
    """

    shapes: Mapping[str, ShapeRange]
    values: Mapping[str, ShapeRange] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts and lists; `from_json` is its inverse."""
        return {
            "shapes": {name: asdict(self.shapes[name]) for name in sorted(self.shapes)},
            "values": {name: asdict(self.values[name]) for name in sorted(self.values)},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> OptimizationProfile:
        """Returns the profile that `to_json` wrote."""
        return cls(_ranges(data["shapes"]), _ranges(data["values"]))


def _ranges(data: Mapping[str, Any]) -> dict[str, ShapeRange]:
    return {n: ShapeRange(tuple(r["min"]), tuple(r["opt"]), tuple(r["max"])) for n, r in data.items()}


@dataclass(frozen=True, slots=True)
class LayerPrecision:
    """The precision of one layer of the network, read before the build.

    Attributes:
        name: TensorRT's name.
        type: Its `LayerType`, for example `"CONVOLUTION"`.
        node: The ONNX node that it comes from, empty for layers that the parser adds.
        outputs: Dtypes of its outputs.
        quantized: The dtype that its data and weights are dequantized from, when both are: TensorRT computes such
            a layer in it. Empty otherwise.
    """

    name: str
    type: str
    node: str
    outputs: tuple[str, ...]
    quantized: str = ""


@dataclass(frozen=True, slots=True)
class Sidecar:
    """What an engine is and what it was made of. Equal builds give equal sidecars but for `seconds`.

    Attributes:
        flavour: Import name of the module that built it: `"tensorrt"` or `"tensorrt_rtx"`.
        version: Of that module. Without version compatibility an engine runs with no other.
        compute_capabilities: For example `(86, 120)`; of a classic engine that of its GPU, if it was told.
        device: What else was told about the GPU that it was built on: name, count of multiprocessors.
        stage: Stage that it computes.
        modalities: Of the stage.
        inputs: Network inputs; symbolic sizes have their names.
        outputs: Network outputs.
        profiles: In the order of their indices in the engine.
        onnx_sha256: Digest of the ONNX file.
        options: Every option of the build.
        typing: `"strong"`: precisions are those of the graph; `"weak"`: the builder may choose others.
        layers: Precision of every layer.
        precisions: Number of layers per precision.
        weights: Bytes of quantized weights, of the same in float, and of the other weights.
        size: Bytes of the engine.
        size_limit: Bytes from which on its quantized weights would be float ones; None when they are too few for
            the size to tell.
        sha256: Digest of the engine.
        seconds: Of the build.
    """

    flavour: str
    version: str
    compute_capabilities: tuple[int, ...]
    device: Mapping[str, Any]
    stage: str
    modalities: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    profiles: tuple[OptimizationProfile, ...]
    onnx_sha256: str
    options: Mapping[str, Any]
    typing: str
    layers: tuple[LayerPrecision, ...]
    precisions: Mapping[str, int]
    weights: Mapping[str, int]
    size: int
    size_limit: int | None
    sha256: str
    seconds: float

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts and lists; `from_json` is its inverse."""
        data = asdict(self)
        data["profiles"] = [p.to_json() for p in self.profiles]
        data["precisions"] = dict(sorted(self.precisions.items()))
        return {"format": FORMAT, **data}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Sidecar:
        """Returns the sidecar that `to_json` wrote.

        Raises:
            KeyError, TypeError, ValueError: It did not write this.
        """
        fields = {name: value for name, value in data.items() if name != "format"}
        return cls(
            **fields
            | {
                "compute_capabilities": tuple(data["compute_capabilities"]),
                "modalities": tuple(data["modalities"]),
                "inputs": _specs(data["inputs"]),
                "outputs": _specs(data["outputs"]),
                "profiles": tuple(OptimizationProfile.from_json(p) for p in data["profiles"]),
                "layers": tuple(
                    LayerPrecision(**layer | {"outputs": tuple(layer["outputs"])}) for layer in data["layers"]
                ),
            }
        )


def _specs(data: list[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(t["name"], t["dtype"], tuple(t["shape"])) for t in data)


def sidecar_file(engine: Path) -> Path:
    """Returns where the sidecar of `engine` is."""
    return engine.with_name(f"{engine.name}.json")


def dumps(sidecar: Sidecar) -> bytes:
    """Returns the file's content: equal sidecars give equal bytes."""
    return json.dumps(sidecar.to_json(), indent=1, sort_keys=True).encode() + b"\n"


def read_sidecar(engine: Path) -> Sidecar:
    """Returns the sidecar of `engine` after checking that the engine is the one that it was written for.

    Raises:
        BackendError: There is none, it is damaged or of a newer edgemm, or the engine is another one.
    """
    return read_engine(engine)[0]


def read_engine(engine: Path) -> tuple[Sidecar, bytes]:
    """Returns the sidecar of `engine` and the bytes of the engine that it was written for.

    Raises:
        BackendError: As `read_sidecar`.
    """
    sidecar = load_sidecar(engine)
    try:
        content = engine.read_bytes()
    except OSError as error:
        raise _unreadable(engine, error) from error
    except MemoryError as error:
        raise BackendError(
            f"engine '{engine.name}' does not fit into memory.", hint="free memory, or build a smaller engine"
        ) from error
    digest = hashlib.sha256(content).hexdigest()
    if (len(content), digest) != (sidecar.size, sidecar.sha256):
        raise BackendError(
            f"engine '{engine.name}' has {len(content):,} bytes and sha256 {digest[:12]}…; its sidecar says "
            f"{sidecar.size:,} and {sidecar.sha256[:12]}….",
            hint="the file was changed or replaced; build the engine again",
        )
    return sidecar, content


def load_sidecar(engine: Path) -> Sidecar:
    """Returns the sidecar of `engine` without a look at the engine.

    Raises:
        BackendError: There is none, or it is damaged or of a newer edgemm.
    """
    file = sidecar_file(engine)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES:,} bytes")
        data = json.loads(file.read_bytes())
        if data["format"] != FORMAT:
            raise ValueError(f"it has format {data['format']}, this edgemm reads {FORMAT}")
        return Sidecar.from_json(data)
    except OSError as error:
        raise _unreadable(engine, error) from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise BackendError(
            f"engine '{engine.name}': its sidecar '{file.name}' cannot be read: {error}.",
            hint="build the engine again with this edgemm",
        ) from error


def _unreadable(engine: Path, error: OSError) -> BackendError:
    return BackendError(
        f"engine '{engine.name}': {error.filename}: {error.strerror}.", hint="build the engine again"
    )


def sha256(*files: Path) -> str:
    """Returns the digest of the files' bytes, one after the other.

    Raises:
        OSError: A file cannot be read.
    """
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while block := stream.read(2**20):
                digest.update(block)
    return digest.hexdigest()
