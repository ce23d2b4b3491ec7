"""Runs an ONNX engine on OpenVINO's CPU plugin. openvino is imported when one opens.

OpenVINO computes fixed shapes much faster than dynamic ones, so a dynamic model is compiled for the shapes that
come: for one sample when it opens, for up to `MAX_FIXED` combinations of shapes as they are first seen, and once
with dynamic shapes for all others.
"""

from __future__ import annotations

import mmap
import re
import sys
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgemm._optional import require
from edgemm.errors import BackendError, BundleError, UnsupportedDeviceError
from edgemm.runtime.onnx_signature import read_signature
from edgemm.runtime.openvino_layers import LayerCounters
from edgemm.runtime.session import SessionOptions
from edgemm.tensors import TensorSpec

PRECISIONS = {"f32": "FP32", "bf16": "BF16"}
"""Precision of a session -> the capability that OpenVINO reports for it."""

MAX_FIXED = 2
"""How many combinations of shapes get a compiled model of their own; each holds its own packed weights."""

TELEMETRY = "openvino_telemetry"
"""The package through which openvino reports its use; openvino works without it."""

_MAX_REMEMBERED = 256
"""How many combinations of shapes are known to fit the model."""

_WIDE = ("int64", "uint64", "uint32")
_INT32 = np.iinfo(np.int32)
_NOISE = re.compile(r"^(Exception from \S+|Check '.*' failed at \S+):?\s*$")
_ADVERTS = re.compile(r"To facilitate the conversion.*")

Shapes = tuple[tuple[int, ...], ...]


def capabilities() -> tuple[str, ...]:
    """Returns what OpenVINO computes in on this processor: `"FP32"`, `"INT8"`, `"BF16"`, `"FP16"` and others.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    openvino = _import_openvino("ask what this processor has")
    return tuple(openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


class OpenVinoSession:
    """One engine on OpenVINO. `run` may be called from several threads at once; the calls take turns inside.

    OpenVINO's CPU plugin computes float64 in float32 and wide integers in int32. The dtypes of inputs and outputs
    stay, digits are lost on the way; integers that do not fit are refused.
    """

    def __init__(self, engine: Path, options: SessionOptions) -> None:
        """Opens the engine file: an ONNX model, its weights inside.

        `options.spinning` changes nothing: OpenVINO's threads spin for a short time only.

        Raises:
            BackendError: No ONNX file, an operator that OpenVINO lacks, or an input that is no number.
            UnsupportedDeviceError: This processor has no arithmetic in `options.precision`.
            MissingExtraError: openvino is not installed.
        """
        self.name = Path(engine).name
        self._compiler: _Compiler | None = _Compiler(Path(engine), options, self.name)
        self.inputs, self.outputs = self._compiler.inputs, self._compiler.outputs
        self._names = tuple(i.name for i in self.inputs)
        self._wide = tuple(i.name for i in self.inputs if i.dtype in _WIDE)
        self._lanes: dict[Shapes, deque[_Lane]] = {}
        self._makers: dict[Shapes, Callable[[], _Lane]] = {}
        self._lock = threading.Lock()
        self._counters = LayerCounters(options.profile_skip) if options.profile_to is not None else None
        self._profile = Path(f"{options.profile_prefix(Path(engine))}.json")
        if (one := self._compiler.one_sample) is not None:
            self._give_back(one, self._maker(one)())
        else:
            self._compiler.dynamic()

    def run(self, feed: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        """Returns the outputs in the order of `outputs`, copied. `feed` holds exactly the engine's inputs.

        The first call with a new combination of shapes may compile the model for it.

        Raises:
            BackendError: The shapes do not fit together, an integer does not fit int32, or OpenVINO failed.
            BundleError: The session is closed.
        """
        if self._compiler is None:
            raise BundleError(f"engine '{self.name}' is closed.", hint="open the session again")
        for name in self._wide:
            _check_range(name, feed[name], self.name)
        arrays = [feed[name] for name in self._names]
        shapes = tuple([array.shape for array in arrays])
        try:
            lane = self._lanes[shapes].pop()
        except (KeyError, IndexError):
            lane = self._maker(shapes)()
        try:
            outputs = lane(arrays)
        except Exception as error:
            raise BackendError(
                f"engine '{self.name}' failed: {explain(error)}",
                hint="check the values and sizes of the inputs; `edgemm inspect` shows what the model takes",
            ) from error
        if self._counters is not None:
            self._counters.ran(lane.request)
        self._give_back(shapes, lane)
        return outputs

    def close(self) -> None:
        """Frees what the engine holds; a second call does nothing. A run under way in a thread ends first."""
        counters, self._counters = self._counters, None
        if counters is not None:
            counters.write(self._profile)
        self._compiler = None
        with self._lock:
            self._lanes, self._makers = {}, {}

    def _give_back(self, shapes: Shapes, lane: _Lane) -> None:
        lanes = self._lanes.get(shapes)
        if lanes is not None:
            lanes.append(lane)

    def _maker(self, shapes: Shapes) -> Callable[[], _Lane]:
        """Returns what makes a lane for `shapes`; compiles the model for them where there is room."""
        with self._lock:
            compiler = self._compiler
            if compiler is None:
                raise BundleError(f"engine '{self.name}' is closed.", hint="open the session again")
            if shapes not in self._makers:
                if len(self._makers) >= _MAX_REMEMBERED:
                    for known in [k for k in self._makers if k not in compiler.fixed]:
                        del self._makers[known], self._lanes[known]
                self._makers[shapes] = compiler.for_shapes(shapes)
                self._lanes[shapes] = deque()
            return self._makers[shapes]


class _Lane:
    """One infer request: inputs are copied in, outputs are copied out, so nobody keeps a view on its memory."""

    __slots__ = ("_fixed", "_tensor", "request")

    def __init__(self, compiled: Any, tensor: Any, *, fixed: bool) -> None:
        self.request = compiled.create_infer_request()
        self._tensor = tensor
        self._fixed = [t.data for t in self.request.input_tensors] if fixed else None

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Returns the outputs for `arrays`, in the order of the model's inputs."""
        if self._fixed is not None:
            for view, array in zip(self._fixed, arrays, strict=True):
                np.copyto(view, array)
        else:
            for at, array in enumerate(arrays):
                self.request.set_input_tensor(at, self._tensor(array))
        return list(self.request.infer().values())


class _Compiler:
    """The model as OpenVINO read it, and what was compiled from it."""

    def __init__(self, model: Path, options: SessionOptions, name: str) -> None:
        self._name = name
        self._openvino = _import_openvino("run this engine")
        self.version = str(self._openvino.__version__).partition("-")[0]
        self._core = self._openvino.Core()
        self._settings = self._checked(options)
        self.inputs, self.outputs = _signature(model, name)
        self._model = self._try(lambda: self._core.read_model(str(model)))
        self._check_ports(self._model.inputs, self.inputs)
        self._check_ports(self._model.outputs, self.outputs)
        self._symbolic = any(isinstance(d, str) for i in self.inputs for d in i.shape)
        self._dynamic: Any = None
        self.fixed: dict[Shapes, Any] = {}

    @property
    def one_sample(self) -> Shapes | None:
        """The shapes of one sample, or None when another axis than the first is symbolic."""
        if any(isinstance(d, str) for i in self.inputs for d in i.shape[1:]):
            return None
        return tuple(tuple(d if isinstance(d, int) else 1 for d in i.shape) for i in self.inputs)

    def dynamic(self) -> Any:
        """Returns the model compiled for any shapes; compiled once."""
        if self._dynamic is None:
            self._dynamic = self._compile(self._model)
        return self._dynamic

    def for_shapes(self, shapes: Shapes) -> Callable[[], _Lane]:
        """Returns what makes a lane that takes inputs of `shapes`.

        OpenVINO's dynamic kernels do not notice sizes that contradict each other; shape inference does.
        """
        model = self._model
        if self._symbolic:
            model = model.clone()
            self._try(lambda: model.reshape(dict(enumerate(shapes))), f" with inputs of {_list(shapes)}")
        if len(self.fixed) < MAX_FIXED and not any(0 in shape for shape in shapes):
            compiled, fixed = self._compile(model), True
            self.fixed[shapes] = compiled
        else:
            compiled, fixed = self.dynamic(), False
        return lambda: _Lane(compiled, self._openvino.Tensor, fixed=fixed)

    def _compile(self, model: Any) -> Any:
        return self._try(lambda: self._core.compile_model(model, "CPU", self._settings))

    def _checked(self, options: SessionOptions) -> dict[str, Any]:
        """Returns OpenVINO's properties for `options`."""
        if options.precision not in PRECISIONS:
            raise BackendError(
                f"engine '{self._name}': OpenVINO has no precision '{options.precision}' "
                f"(precisions: {', '.join(PRECISIONS)}).",
                hint="update edgemm on this device",
            )
        capabilities = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if PRECISIONS[options.precision] not in capabilities:
            raise UnsupportedDeviceError(
                f"engine '{self._name}' computes in {options.precision}, which this processor does not have.",
                hint="open another variant of the bundle, or run on a processor with AVX512-BF16 or AMX",
            )
        settings: dict[str, Any] = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_PRECISION_HINT": options.precision,
            "ENABLE_CPU_PINNING": False,  # an app's other threads run on these cores as well
        }
        if options.threads:
            settings["INFERENCE_NUM_THREADS"] = options.threads
        if options.profile_to is not None:
            settings["PERF_COUNT"] = True
        return settings

    def _check_ports(self, ports: Sequence[Any], specs: Sequence[TensorSpec]) -> None:
        names = [sorted(port.get_names()) for port in ports]
        if len(ports) != len(specs) or any(s.name not in n for s, n in zip(specs, names, strict=True)):
            raise BackendError(
                f"engine '{self._name}': OpenVINO reads {names}, the file says {[s.name for s in specs]}.",
                hint="use the onnxruntime backend for this model",
            )

    def _try(self, action: Callable[[], Any], where: str = "") -> Any:
        try:
            return action()
        except Exception as error:
            raise BackendError(
                f"engine '{self._name}' does not run in OpenVINO {self.version}{where}: {explain(error)}",
                hint="use the onnxruntime backend for this model, or update openvino",
            ) from error


def _signature(model: Path, name: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Returns the inputs and outputs of an ONNX file. It is mapped, not read.

    Raises:
        BackendError: It cannot be read, or is no ONNX file.
    """
    try:
        with model.open("rb") as file:
            content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # an empty file cannot be mapped
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise BackendError(
            f"engine '{name}' cannot be read: {reason or error}.",
            hint="is it there?",
        ) from error
    return read_signature(content, name)


def compile_onnx(model: Path, options: SessionOptions, name: str) -> str:
    """Compiles an ONNX model once, with dynamic shapes where it has them, and returns OpenVINO's version.

    Raises:
        BackendError: OpenVINO cannot run `model`, called `name`.
        MissingExtraError: openvino is not installed.
    """
    compiler = _Compiler(model, options, name)
    compiler.dynamic()
    return compiler.version


def _import_openvino(why: str) -> Any:
    """Returns the package; its import would report itself over the network if it found its telemetry package.

    Raises:
        MissingExtraError: openvino is not installed.
    """
    if "openvino" in sys.modules or TELEMETRY in sys.modules:
        return require("openvino", extra="openvino", why=why)
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        return require("openvino", extra="openvino", why=why)
    finally:
        sys.modules.pop(TELEMETRY, None)


def explain(error: Exception) -> str:
    """Returns what OpenVINO said, without its source lines."""
    lines = [line.strip() for line in _ADVERTS.sub("", str(error)).splitlines()]
    return " ".join(line for line in lines if line and not _NOISE.match(line))[:800]


def _check_range(name: str, array: np.ndarray, engine: str) -> None:
    if array.size and (array.max() > _INT32.max or array.min() < _INT32.min):
        raise BackendError(
            f"engine '{engine}', input '{name}': {array.min()} to {array.max()}; OpenVINO computes in int32.",
            hint="feed smaller numbers (seconds since the start, not nanoseconds), or use the onnxruntime backend",
        )


def _list(shapes: Shapes) -> str:
    return ", ".join(map(str, shapes))
