"""What this machine can do at most, measured: products of large matrices, and copies of large arrays.

The products run through the same backend, threads and precision as the engines that are compared with them. A copy
counts what it reads and what it writes. Measured once per machine and kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from edgemm.errors import EdgemmError
from edgemm.runtime.folders import cache_folder
from edgemm.runtime.machine import describe_machine
from edgemm.runtime.registry import session_class
from edgemm.runtime.session import SessionOptions

MEASURED = ("onnxruntime", "openvino")
"""Backends whose peak is measured: on a GPU the copies to it and back would be in it."""

FILE = "peaks.json"
"""Where peaks are kept, in the user's cache folder; remove it to measure again."""

SIZE = 1024
"""Rows and columns of the matrices."""

COPIED = 64 * 2**20
"""Bytes that are copied at once, by all threads together: more than caches hold."""

SECONDS = 0.3
"""How long each is repeated; the fastest counts."""

_FLOAT, _UINT8, _INT8 = 1, 2, 3


@dataclass(frozen=True, slots=True)
class Peaks:
    """Rates per second.

    Attributes:
        backend: What ran the products.
        version: Of the backend.
        threads: That it had; 0 is its own choice.
        precision: Of float products: `"f32"` or `"bf16"`.
        float_flops: Floating-point operations of a product of matrices.
        integer_flops: The same with uint8 and int8; None where the backend does not run it.
        bandwidth: Bytes read and written by copies.
        measured: When, UTC.
    """

    backend: str
    version: str
    threads: int
    precision: str
    float_flops: float
    integer_flops: float | None
    bandwidth: float
    measured: str

    def to_json(self) -> dict[str, Any]:
        """Returns the rates in GFLOP/s and GB/s, with what was measured and where."""
        return {
            "label": "measured on this machine",
            "measured": self.measured,
            "backend": f"{self.backend} {self.version}",
            "threads": self.threads or None,
            "precision": self.precision,
            "float_gflops": self.float_flops / 1e9,
            "int8_gflops": None if self.integer_flops is None else self.integer_flops / 1e9,
            "bandwidth_gb_s": self.bandwidth / 1e9,
            "method": f"product of two {SIZE} x {SIZE} matrices; copies of {COPIED >> 20} MiB, read and written",
        }


def machine_peaks(backend: str, threads: int = 0, precision: str = "f32", folder: Path | None = None) -> Peaks:
    """Returns the peaks of this machine, from the cache where they were measured before.

    Args:
        backend: One of `MEASURED`.
        threads: Of the engine; 0 lets the backend decide.
        precision: Of what the graph leaves in float32.
        folder: Where they are kept; None is the user's cache folder.

    Raises:
        EdgemmError: The backend is not installed, or does not run on this machine.
    """
    version = str(getattr(sys.modules.get(backend), "__version__", ""))
    machine = describe_machine()
    told = {"machine": machine.to_json(), "backend": backend, "version": version, "threads": threads}
    text = json.dumps([told, precision, SIZE, COPIED], sort_keys=True)
    key = hashlib.sha256(text.encode()).hexdigest()[:16]
    file = (folder or cache_folder()) / FILE
    kept = _kept(file)
    with suppress(KeyError, TypeError):
        return Peaks(**kept[key])
    peaks = Peaks(
        backend,
        version,
        threads,
        precision,
        product_rate(backend, threads, precision),
        _integer_rate(backend, threads),
        copy_rate(threads or machine.cores),
        datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )
    _keep(file, {**kept, key: asdict(peaks)})
    return peaks


def product_rate(backend: str, threads: int, precision: str = "f32", *, integer: bool = False) -> float:
    """Returns the operations per second of one large product of matrices; the fastest of several.

    Raises:
        EdgemmError: The backend is not installed, or refuses the product.
    """
    data = np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    options = SessionOptions(threads=threads, spinning=True, precision=precision)
    with tempfile.TemporaryDirectory(prefix="edgemm-") as folder:
        file = Path(folder) / "product.onnx"
        file.write_bytes(product_model(SIZE, integer=integer))
        engine = session_class(backend)(file, options)
        try:
            return 2 * SIZE**3 / _fastest(lambda: engine.run({"x": data}))
        finally:
            engine.close()


def _integer_rate(backend: str, threads: int) -> float | None:
    try:
        return product_rate(backend, threads, integer=True)
    except EdgemmError:
        return None


def copy_rate(threads: int) -> float:
    """Returns the bytes per second that `threads` threads read and write together; the fastest of several."""
    share = COPIED // threads
    pairs = [(np.zeros(share, np.uint8), np.ones(share, np.uint8)) for _ in range(threads)]
    if threads == 1:
        return 2 * share / _fastest(lambda: np.copyto(*pairs[0]))
    with ThreadPoolExecutor(threads) as pool:
        return 2 * share * threads / _fastest(lambda: list(pool.map(lambda pair: np.copyto(*pair), pairs)))


def _fastest(call: Callable[[], object]) -> float:
    """Returns the seconds of the fastest call."""
    best, calls, end = float("inf"), 0, perf_counter() + SECONDS
    while calls < 3 or perf_counter() < end:
        start = perf_counter()
        call()
        best, calls = min(best, perf_counter() - start), calls + 1
    return best


def _kept(file: Path) -> dict[str, Any]:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return kept if isinstance(kept, dict) else {}


def _keep(file: Path, kept: dict[str, Any]) -> None:
    """Writes the file in one piece; where nothing can be written it is measured again next time."""
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=file.parent, suffix=".tmp", delete=False) as temporary:
            json.dump(kept, temporary, indent=1, sort_keys=True)
        Path(temporary.name).replace(file)


def product_model(size: int, *, integer: bool = False) -> bytes:
    """Returns the ONNX file of `y = x @ w`, `size` by `size`: in float32, or by Q/DQ in uint8 and int8."""
    random = np.random.default_rng(1)
    if not integer:
        weights = [_initializer("w", _FLOAT, random.standard_normal((size, size), np.float32))]
        nodes = [_node("MatMul", ("x", "w"), "y")]
    else:
        weights = [
            _initializer("w", _INT8, random.integers(-127, 128, (size, size)).astype(np.int8)),
            _initializer("scale", _FLOAT, np.float32(0.05)),
            _initializer("middle", _UINT8, np.uint8(128)),
            _initializer("zero", _INT8, np.int8(0)),
        ]
        nodes = [
            _node("QuantizeLinear", ("x", "scale", "middle"), "xq"),
            _node("DequantizeLinear", ("xq", "scale", "middle"), "xd"),
            _node("DequantizeLinear", ("w", "scale", "zero"), "wd"),
            _node("MatMul", ("xd", "wd"), "y"),
        ]
    graph = b"".join(_field(1, node) for node in nodes) + _field(2, b"product")
    graph += b"".join(_field(5, weight) for weight in weights)
    graph += _field(11, _value("x", size)) + _field(12, _value("y", size))
    return _number(1, 8) + _field(7, graph) + _field(8, _field(1, b"") + _number(2, 17))


def _node(op: str, inputs: tuple[str, ...], output: str) -> bytes:
    read = b"".join(_field(1, name.encode()) for name in inputs)
    return read + _field(2, output.encode()) + _field(3, f"{op}_{output}".encode()) + _field(4, op.encode())


def _initializer(name: str, dtype: int, array: Any) -> bytes:
    array = np.asarray(array)
    dims = b"".join(_number(1, size) for size in array.shape)
    return dims + _number(2, dtype) + _field(8, name.encode()) + _field(9, array.tobytes())


def _value(name: str, size: int) -> bytes:
    dim = _field(1, _number(1, size))
    return _field(1, name.encode()) + _field(2, _field(1, _number(1, _FLOAT) + _field(2, dim + dim)))


def _field(number: int, content: bytes) -> bytes:
    """Returns a length-delimited protobuf field; field numbers are those of onnx.proto."""
    return _varint(number << 3 | 2) + _varint(len(content)) + content


def _number(number: int, value: int) -> bytes:
    return _varint(number << 3) + _varint(value)


def _varint(value: int) -> bytes:
    result = bytearray()
    while value > 0x7F:
        result.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*result, value])
