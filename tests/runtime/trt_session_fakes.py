"""The runtime half of the fake TensorRT: engines that compute, with ONNX Runtime, what their ONNX file says.

An engine's "plan" is the ONNX file with a header. Its memory is the fake CUDA's, its launches are work on the
fake's lazy streams: inputs are read and outputs written when the stream gets there. What the real one refuses is
refused: null or unaligned addresses, memory that is too small, shapes outside of the profile, the default stream.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import sys
import traceback
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime
from cuda_fake import FakeCuda

sys.path.append(str(Path(__file__).parents[1] / "backends"))

from trt_fakes import BEHAVIOUR, DTYPES, VERSIONS, Machine, Member, Memory, fake_module, make

from edgemm.backends._trt.request import BuildOptions
from edgemm.runtime._trt.sidecar import OptimizationProfile, Sidecar, dumps, sidecar_file
from edgemm.tensors import TensorSpec

__all__ = ["VERSIONS", "RuntimeMachine", "fake_runtime", "profile", "write_engine"]

MAGIC = b"fake plan\n"
STORED = {
    "FLOAT": np.float32,
    "HALF": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "FP8": ml_dtypes.float8_e4m3fn,
    "INT8": np.int8,
    "UINT8": np.uint8,
    "INT32": np.int32,
    "INT64": np.int64,
    "BOOL": np.bool_,
}
NAMES = {name: np.dtype(dtype).name for name, dtype in STORED.items()}


@dataclass
class RuntimeMachine(Machine):
    """What the fake runtime does besides.

    Attributes:
        cuda: The fake CUDA that it runs on.
        refuses: What it logs instead of loading an engine.
        no_context: What it logs instead of making a context.
        enqueue_fails: What it logs instead of launching.
        kernel_error: What a launch gives when the stream gets there.
        streamable: Bytes of weights that can be streamed.
        takes_cache: Whether a kept runtime cache loads.
        executed: Engines in the order in which their launches ran.
        waiting: At each launch: how many launches had not run.
        freed: Kinds of objects in the order in which they went away.
        errors: What went wrong inside of launches.
        layers: Layer -> milliseconds that a profiler is told after every launch.
        inspection: What an inspector tells of an engine, as JSON.
    """

    cuda: FakeCuda | None = None
    refuses: str = ""
    no_context: str = ""
    enqueue_fails: str = ""
    kernel_error: int = 0
    streamable: int = 0
    takes_cache: bool = True
    executed: list[str] = field(default_factory=list)
    waiting: list[int] = field(default_factory=list)
    freed: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    launched: int = 0
    layers: Mapping[str, float] = field(default_factory=dict)
    inspection: str = ""


def fake_runtime(version: str, cuda: FakeCuda, **more: Any) -> Any:
    return fake_module(version, RuntimeMachine(cuda=cuda, **more))


def write_engine(
    trt: Any,
    model: onnx.ModelProto,
    folder: Path,
    name: str = "model",
    *,
    profiles: Sequence[OptimizationProfile] = (),
    dtypes: Mapping[str, str] | None = None,
    host: Mapping[str, str] | None = None,
    **changes: Any,
) -> Path:
    """Writes graph, engine and sidecar, and returns the engine's file.

    Args:
        trt: The fake module that will load it.
        model: What the engine computes.
        folder: Where to.
        name: Of the engine.
        profiles: Of the engine.
        dtypes: Tensor -> member of DataType that the engine has instead of the graph's.
        host: Input that is a shape -> symbol of an output's size that is its value.
        changes: Fields of the sidecar.
    """
    graph = model.SerializeToString()
    (folder / f"{name}.onnx").write_bytes(graph)
    header = {
        "profiles": [p.to_json() for p in profiles],
        "dtypes": dict(dtypes or {}),
        "host": dict(host or {}),
        "name": name,
    }
    plan = MAGIC + json.dumps(header).encode() + b"\n" + graph
    file = folder / f"{name}.0123456789ab.engine"
    file.write_bytes(plan)
    tensors = [_tensors(trt, values, header) for values in (model.graph.input, model.graph.output)]
    inputs, outputs = (
        tuple(
            TensorSpec(n, NAMES.get(t, t.lower()), tuple(d.dim_param or d.dim_value for d in dims))
            for n, t, dims in found
        )
        for found in tensors
    )
    fields: dict[str, Any] = {
        "flavour": trt.__name__,
        "version": trt.__version__,
        "compute_capabilities": (87,),
        "device": {},
        "stage": name,
        "modalities": (name,),
        "inputs": inputs,
        "outputs": outputs,
        "profiles": tuple(profiles),
        "onnx_sha256": hashlib.sha256(graph).hexdigest(),
        "options": asdict(BuildOptions()),
        "typing": "strong",
        "layers": (),
        "precisions": {},
        "weights": {},
        "size": len(plan),
        "size_limit": None,
        "sha256": hashlib.sha256(plan).hexdigest(),
        "seconds": 0.0,
    }
    sidecar_file(file).write_bytes(dumps(Sidecar(**fields | changes)))
    return file


def profile(**shapes: Any) -> OptimizationProfile:
    """A profile of `name=(min, opt, max)`."""
    from edgemm.tensors import ShapeRange

    return OptimizationProfile({n: ShapeRange(*map(tuple, s)) for n, s in shapes.items()})


def _tensors(trt: Any, values: Any, header: Mapping[str, Any]) -> list[tuple[str, str, Any]]:
    found = []
    for value in values:
        name = header["dtypes"].get(value.name) or DTYPES[value.type.tensor_type.elem_type]
        if name == "INT64" and not hasattr(trt.DataType, name):
            name = "INT32"
        found.append((value.name, name, list(value.type.tensor_type.shape.dim)))
    return found


# --- behaviour ---


def _say(module: Any, logger: Any, text: str) -> None:
    logger.log(Member("Severity", "ERROR", 99), text)


def _track(module: Any, made: Any, kind: str) -> Any:
    weakref.finalize(made, module.machine.freed.append, kind)
    return made


def _start(module: Any, self: Any, logger: Any) -> None:
    assert isinstance(logger, module.ILogger)
    if not module.machine.starts:
        _say(module, logger, "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    self._facts["logger"] = logger
    _track(module, self, "runtime")


def _deserialize(module: Any, self: Any, plan: bytes) -> Any:
    machine, logger = module.machine, self._facts["logger"]
    assert type(plan) is bytes
    if machine.refuses or not plan.startswith(MAGIC):
        _say(module, logger, machine.refuses or "Serialization assertion plan->header.magicTag failed")
        return None
    header, _, graph = plan[len(MAGIC) :].partition(b"\n")
    facts = json.loads(header)
    model = onnx.load_from_string(graph)
    inputs, outputs = (_tensors(module, values, facts) for values in (model.graph.input, model.graph.output))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    engine = make(
        module,
        "ICudaEngine",
        logger=logger,
        header=facts,
        inputs={n: (t, dims) for n, t, dims in inputs},
        outputs={n: (t, dims) for n, t, dims in outputs},
        profiles=[OptimizationProfile.from_json(p) for p in facts["profiles"]],
        session=onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"]),
    )
    return _track(module, engine, "engine")


def _io(self: Any) -> dict[str, Any]:
    return {**self._facts["inputs"], **self._facts["outputs"]}


def _create_context(module: Any, self: Any, config: Any = None) -> Any:
    machine = module.machine
    if machine.no_context:
        _say(module, self._facts["logger"], machine.no_context)
        return None
    cache = None
    if config is not None and hasattr(module, "IRuntimeConfig"):
        assert isinstance(config, module.IRuntimeConfig)
        cache = config._facts["cache"]
    facts = {"shapes": {}, "addresses": {}, "allocators": {}, "inferred": {}, "profile": 0, "cache": cache}
    return _track(module, make(module, "IExecutionContext", engine=self, **facts), "context")


def _set_profile(module: Any, self: Any, index: int, stream: int) -> bool:
    assert stream > 2
    self._facts.update(profile=index, shapes={}, inferred={})
    return 0 <= index < max(1, len(self._facts["engine"]._facts["profiles"]))


def _set_shape(module: Any, self: Any, name: str, shape: Sequence[int]) -> bool:
    engine = self._facts["engine"]._facts
    _, dims = engine["inputs"][name]
    ranges = engine["profiles"][self._facts["profile"]].shapes.get(name) if engine["profiles"] else None
    for axis, (size, dim) in enumerate(zip(shape, dims, strict=True)):
        low, high = (ranges.min[axis], ranges.max[axis]) if ranges else (dim.dim_value, dim.dim_value)
        if not low <= size <= high:
            _say(
                module, engine["logger"], f"IExecutionContext::setInputShape: {name} does not satisfy any profile"
            )
            return False
    self._facts["shapes"][name] = tuple(int(size) for size in shape)
    return True


def _infer(module: Any, self: Any) -> list[str]:
    engine = self._facts["engine"]._facts
    lacking = [n for n in engine["inputs"] if n not in self._facts["shapes"]]
    if lacking:
        return lacking
    sizes: dict[str, int] = {}
    for name, (_, dims) in engine["inputs"].items():
        sizes.update((d.dim_param, size) for d, size in zip(dims, self._facts["shapes"][name], strict=True))
    for name, symbol in engine["header"]["host"].items():
        sizes[symbol] = int(
            _read(engine, name, self._facts["shapes"], self._facts["addresses"]).ravel()[0]
        )  # TensorRT reads shapes while it infers
    self._facts["inferred"] = {
        name: tuple(sizes.get(d.dim_param, -1) if d.dim_param else d.dim_value for d in dims)
        for name, (_, dims) in engine["outputs"].items()
    }
    return []


def _shape(module: Any, self: Any, name: str) -> tuple[int, ...]:
    return self._facts["shapes"].get(name) or self._facts["inferred"][name]


def _set_address(module: Any, self: Any, name: str, memory: int) -> bool:
    assert name in _io(self._facts["engine"])
    self._facts["addresses"][name] = memory
    return True


def _set_allocator(module: Any, self: Any, name: str, allocator: Any) -> bool:
    assert isinstance(allocator, module.IOutputAllocator)
    self._facts["allocators"][name] = allocator
    return True


def _view(address: int, shape: Sequence[int], name: str) -> np.ndarray:
    dtype = np.dtype(STORED[name])
    size = prod(shape) * dtype.itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), dtype).reshape(shape)


def _read(
    engine: Mapping[str, Any], name: str, shapes: Mapping[str, Any], addresses: Mapping[str, int]
) -> np.ndarray:
    return _view(addresses[name], shapes[name], engine["inputs"][name][0]).copy()


def _compute(engine: Mapping[str, Any], values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the engine's outputs are, in its own dtypes."""
    session = engine["session"]
    wanted = {"tensor(float)": np.float32, "tensor(int64)": np.int64, "tensor(float16)": np.float16}
    feed = {i.name: values[i.name].astype(wanted.get(i.type, values[i.name].dtype)) for i in session.get_inputs()}
    results = session.run(None, feed)
    return {
        o.name: np.ascontiguousarray(r).astype(STORED[engine["outputs"][o.name][0]])
        for o, r in zip(session.get_outputs(), results, strict=True)
    }


def _check_memory(
    module: Any, addresses: Mapping[str, int], shapes: Mapping[str, Any], io: Mapping[str, Any]
) -> None:
    for name, address in addresses.items():
        size = prod(shapes[name]) * np.dtype(STORED[io[name][0]]).itemsize
        assert address, f"{name} has no address"
        assert address % 256 == 0, f"{name} is not aligned"
        assert module.machine.cuda.allocated(address, size), f"{name} is not in memory of {size} bytes"


def _execute(module: Any, self: Any, stream: int) -> bool:
    machine, engine = module.machine, self._facts["engine"]._facts
    assert stream > 2, "the default stream"
    if machine.enqueue_fails:
        _say(module, engine["logger"], machine.enqueue_fails)
        return False
    shapes = dict(self._facts["shapes"])
    if self._facts["allocators"]:
        return _execute_sized_by_values(module, self, stream)
    shapes.update(self._facts["inferred"])
    io = {**engine["inputs"], **engine["outputs"]}
    addresses = {name: self._facts["addresses"].get(name, 0) for name in io}
    _check_memory(module, addresses, shapes, io)
    machine.waiting.append(machine.launched - len(machine.executed))
    machine.launched += 1

    def kernel() -> int:
        try:
            _check_memory(module, addresses, shapes, io)
            values = {n: _read(engine, n, shapes, addresses) for n in engine["inputs"]}
            for name, result in _compute(engine, values).items():
                assert result.shape == shapes[name], (name, result.shape, shapes[name])
                _view(addresses[name], result.shape, engine["outputs"][name][0])[...] = result
            machine.executed.append(engine["header"]["name"])
        except Exception:
            machine.errors.append(traceback.format_exc())
            return 700
        return int(machine.kernel_error)

    _fill_cache(self)
    if machine.cuda.launch(stream, kernel):
        return False
    _tell_profiler(module, self, stream)
    return True


def _tell_profiler(module: Any, self: Any, stream: int) -> None:
    """With a profiler a launch ends before it returns."""
    profiler = self._values.get("profiler")
    if profiler is not None:
        assert isinstance(profiler, module.IProfiler)
        module.machine.cuda.library.cudaStreamSynchronize(ctypes.c_void_p(stream))
        for name, ms in module.machine.layers.items():
            profiler.report_layer_time(name, ms)


def _execute_sized_by_values(module: Any, self: Any, stream: int) -> bool:
    """TensorRT waits inside of the launch until it knows the sizes, and asks for memory then."""
    machine, engine = module.machine, self._facts["engine"]._facts
    if machine.cuda.library.cudaStreamSynchronize(ctypes.c_void_p(stream)):
        return False
    shapes, addresses = self._facts["shapes"], self._facts["addresses"]
    results = _compute(engine, {n: _read(engine, n, shapes, addresses) for n in engine["inputs"]})
    targets = {}
    for name, result in results.items():
        allocator = self._facts["allocators"].get(name)
        if allocator is None:
            targets[name] = self._facts["addresses"][name]
            continue
        if result.nbytes:
            current = self._facts["addresses"].get(name, 0)
            if not hasattr(allocator, "reallocate_output_async") or module.__version__.startswith("8."):
                targets[name] = allocator.reallocate_output(name, current, result.nbytes, 256)
            else:
                targets[name] = allocator.reallocate_output_async(name, current, result.nbytes, 256, stream)
            if not targets[name]:
                _say(module, engine["logger"], "output allocator failed")
                return False
        allocator.notify_shape(name, result.shape)

    def kernel() -> int:
        for name, result in results.items():
            if result.nbytes:
                _view(targets[name], result.shape, engine["outputs"][name][0])[...] = result
        machine.executed.append(engine["header"]["name"])
        return int(machine.kernel_error)

    machine.launched += 1
    return bool(machine.cuda.launch(stream, kernel) == 0)


def _fill_cache(self: Any) -> None:
    if self._facts["cache"] is not None:
        self._facts["cache"]._facts["content"] = b"kernels"


def _deserialize_cache(module: Any, self: Any, blob: bytes) -> bool:
    if module.machine.takes_cache:
        self._facts["content"] = bytes(blob)
    return bool(module.machine.takes_cache)


def _set_cache(module: Any, self: Any, cache: Any = None) -> bool:
    self._facts["cache"] = cache
    return True


BEHAVIOUR.update(
    {
        "Runtime.__init__": _start,
        "Runtime.deserialize_cuda_engine": _deserialize,
        "ICudaEngine.num_io_tensors": lambda m, self: len(_io(self)),
        "ICudaEngine.get_tensor_name": lambda m, self, index: list(_io(self))[index],
        "ICudaEngine.get_tensor_dtype": lambda m, self, name: getattr(m.DataType, _io(self)[name][0]),
        "ICudaEngine.get_tensor_mode": lambda m, self, name: getattr(
            m.TensorIOMode, "INPUT" if name in self._facts["inputs"] else "OUTPUT"
        ),
        "ICudaEngine.get_tensor_location": lambda m, self, name: getattr(
            m.TensorLocation, "HOST" if name in self._facts["header"]["host"] else "DEVICE"
        ),
        "ICudaEngine.num_optimization_profiles": lambda m, self: max(1, len(self._facts["profiles"])),
        "ICudaEngine.device_memory_size": lambda m, self: 3 * 2**20,
        "ICudaEngine.device_memory_size_v2": lambda m, self: 3 * 2**20,
        "ICudaEngine.streamable_weights_size": lambda m, self: m.machine.streamable,
        "ICudaEngine.create_engine_inspector": lambda m, self: make(m, "EngineInspector"),
        "EngineInspector.get_engine_information": lambda m, self, form: m.machine.inspection,
        "ICudaEngine.create_runtime_config": lambda m, self: make(m, "IRuntimeConfig", cache=None),
        "ICudaEngine.create_execution_context": _create_context,
        "IRuntimeConfig.create_runtime_cache": lambda m, self: make(m, "IRuntimeCache", content=b""),
        "IRuntimeConfig.set_runtime_cache": _set_cache,
        "IRuntimeCache.deserialize": _deserialize_cache,
        "IRuntimeCache.serialize": lambda m, self: Memory(self._facts["content"]),
        "IExecutionContext.active_optimization_profile": lambda m, self: self._facts["profile"],
        "IExecutionContext.set_optimization_profile_async": _set_profile,
        "IExecutionContext.set_input_shape": _set_shape,
        "IExecutionContext.infer_shapes": _infer,
        "IExecutionContext.get_tensor_shape": _shape,
        "IExecutionContext.set_tensor_address": _set_address,
        "IExecutionContext.set_output_allocator": _set_allocator,
        "IExecutionContext.execute_async_v3": _execute,
    }
)
