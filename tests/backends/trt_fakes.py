"""TensorRT modules of nine versions, made from what their bindings declare: names, members, signatures.

The snapshots in `tests/data/tensorrt_api` list, per class, each member with its signatures (null for a property).
A fake has those and nothing else: another attribute is an AttributeError, another number of arguments or another
keyword a TypeError. Members of an enum have numbers that no TensorRT gives them.

Behaviour is that of `Machine`: the parser makes a network of the ONNX file, the builder gives as many bytes as its
weights have.
"""

from __future__ import annotations

import functools
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx

SNAPSHOTS = Path(__file__).parents[1] / "data" / "tensorrt_api"
VERSIONS = tuple(sorted(f.stem for f in SNAPSHOTS.glob("*.json")))
"""For example `"tensorrt-8.6.1"`."""

LAYERS = {
    "Conv": "CONVOLUTION",
    "MatMul": "MATRIX_MULTIPLY",
    "Gemm": "MATRIX_MULTIPLY",
    "Relu": "ACTIVATION",
    "Add": "ELEMENTWISE",
    "Concat": "CONCATENATION",
    "Cast": "CAST",
    "QuantizeLinear": "QUANTIZE",
    "DequantizeLinear": "DEQUANTIZE",
    "Attention": "ATTENTION_INPUT",
}
DTYPES = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF", 16: "BF16", 17: "FP8"}
BYTES = {"FLOAT": 4, "HALF": 2, "BF16": 2, "INT8": 1, "UINT8": 1, "BOOL": 1, "FP8": 1, "INT32": 4, "INT64": 8}


@dataclass
class Machine:
    """What the fake TensorRT does.

    Attributes:
        dla_cores: Accelerators that it finds.
        dla_layers: Layer types that run on one.
        parser_errors: What the parser says instead of parsing: fields of ParserError.
        parser_refuses: The parser says no without an error.
        build_log: (severity, message) that the build logs; with an error in it, it gives nothing.
        starts: Whether a Builder can be made.
        capability_taken: What set_compute_capability answers.
        profile_index: What add_optimization_profile answers, None: counts.
        timing_fits: What set_timing_cache answers for a cache with content.
        drops_quantization: The parser leaves Q/DQ out.
        stores_float: The engine has 4 bytes per quantized weight.
        shape_inputs: Inputs that are shapes.
        steps: Steps of the build that a monitor is told about.
        replaced: `"Class.member"` -> what it does instead of what `BEHAVIOUR` says.
    """

    dla_cores: int = 0
    dla_layers: tuple[str, ...] = ()
    parser_errors: tuple[Mapping[str, Any], ...] = ()
    parser_refuses: bool = False
    build_log: tuple[tuple[str, str], ...] = ()
    starts: bool = True
    capability_taken: bool | None = None
    profile_index: int | None = None
    timing_fits: bool = True
    drops_quantization: bool = False
    stores_float: bool = False
    shape_inputs: tuple[str, ...] = ()
    steps: int = 3
    replaced: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    calls: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def called(self, name: str) -> list[tuple[Any, ...]]:
        """The arguments of every call of `"Class.method"`, and every value that `"Class.property"` was set to."""
        return [arguments for called, arguments in self.calls if called == name]


class Member:
    """A member of an enum."""

    def __init__(self, enum: str, name: str, number: int) -> None:
        self.enum, self.name, self.number = enum, name, number

    def __int__(self) -> int:
        return self.number

    def __repr__(self) -> str:
        return f"{self.enum}.{self.name}"


class Memory(bytes):
    """IHostMemory: has the buffer interface."""


class Fake:
    """An object of a snapshot's class; `_values` are its properties, `_facts` what its behaviour needs."""

    def __init__(self) -> None:
        object.__setattr__(self, "_values", {})
        object.__setattr__(self, "_facts", {})

    def __setattr__(self, name: str, value: Any) -> None:
        # classes that the product derives keep attributes of their own; TensorRT's do not
        if type(self).__module__ == __name__ and name != "__class__" and not hasattr(type(self), name):
            raise AttributeError(f"{type(self).__name__} has no attribute '{name}'")
        object.__setattr__(self, name, value)


class FakeModule(ModuleType):
    """A module whose classes, enums and functions are made when they are asked for."""

    def __init__(self, version: str, machine: Machine) -> None:
        self._snapshot = snapshot(version)
        super().__init__(self._snapshot["module"])
        self.__version__, self.machine = self._snapshot["version"], machine

    def __getattr__(self, name: str) -> Any:
        data = self._snapshot
        if name in data["enums"]:
            made: Any = _enum(name, data["enums"][name])
        elif name in data["classes"]:
            made = _class(self, name, data["classes"][name])
        elif name in data["functions"]:
            made = _function(self, name)
        else:
            raise AttributeError(f"module '{self.__name__}' has no attribute '{name}'")
        setattr(self, name, made)
        return made


@functools.cache
def snapshot(version: str) -> dict[str, Any]:
    return json.loads((SNAPSHOTS / f"{version}.json").read_text())


def fake_module(version: str, machine: Machine | None = None) -> Any:
    """Returns the module of a snapshot; `machine` is kept as its `machine`."""
    return FakeModule(version, machine or Machine())


def _enum(name: str, members: list[str]) -> type:
    order = random.Random(f"{name} {members}").sample(range(3, 30 + len(members)), len(members))
    return type(name, (), {m: Member(name, m, n) for m, n in zip(members, order, strict=True)})


FUNCTIONS = {"init_libnvinfer_plugins": [["logger", "namespace"]]}
"""Signatures of functions that may be called: snapshots have their names only."""


def _function(module: Any, name: str) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> bool:
        module.machine.calls.append((name, bind(name, FUNCTIONS[name], args, kwargs)))
        return True

    return call


def make(module: Any, name: str, /, **facts: Any) -> Any:
    """Returns an object of `module`'s class `name` with what its behaviour needs."""
    made = getattr(module, name).__new__(getattr(module, name))
    Fake.__init__(made)
    made._facts.update(facts)
    return made


def _class(module: Any, name: str, members: Mapping[str, list[list[str]] | None]) -> type:
    namespace: dict[str, Any] = {"__module__": __name__}
    for member, signatures in members.items():
        if member == "__init__":
            namespace[member] = _constructor(module, name, signatures)
        elif signatures is not None:
            namespace[member] = _method(module, name, member, signatures)
        elif not member.startswith("__"):
            namespace[member] = _property(module, name, member)
    return type(name, (Fake,), namespace)


def _behaviour(module: Any, name: str, member: str) -> Callable[..., Any] | None:
    """Returns what a member of a class does, or None where nobody has said."""
    own = f"{name}.{member}"
    return module.machine.replaced.get(own) or BEHAVIOUR.get(own) or BEHAVIOUR.get(f"*.{member}")


def _constructor(module: Any, name: str, signatures: list[list[str]] | None) -> Callable[..., None]:
    def construct(self: Any, *args: Any, **kwargs: Any) -> None:
        if signatures is None:
            raise TypeError(f"{name}: No constructor defined!")
        arguments = bind(f"{name}.__init__", signatures, args, kwargs)
        Fake.__init__(self)
        (_behaviour(module, name, "__init__") or _nothing)(module, self, *arguments)

    return construct


def _method(module: Any, name: str, member: str, signatures: list[list[str]]) -> Callable[..., Any]:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = bind(f"{name}.{member}", signatures, args, kwargs)
        module.machine.calls.append((f"{name}.{member}", arguments))
        return (_behaviour(module, name, member) or _nothing)(module, self, *arguments)

    return call


def _property(module: Any, name: str, member: str) -> property:
    def get(self: Any) -> Any:
        behaviour = _behaviour(module, name, member)
        if behaviour is not None:
            return behaviour(module, self)
        return self._values.get(member)

    def put(self: Any, value: Any) -> None:
        module.machine.calls.append((f"{name}.{member}", (value,)))
        self._values[member] = value

    return property(get, put)


def bind(
    where: str, signatures: list[list[str]], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """Returns the arguments in order, if one of the signatures takes them."""
    for signature in signatures:
        names = [n.rstrip("?") for n in signature]
        needed = sum(not n.endswith("?") for n in signature)
        given = dict(zip(names, args, strict=False)) | dict(kwargs)
        fits = len(args) <= len(names) and set(kwargs) <= set(names[len(args) :])
        if fits and all(n in given for n in names[:needed]):
            return tuple(given[n] for n in names if n in given)
    raise TypeError(f"{where}: got {len(args)} arguments and {sorted(kwargs)}, expected one of {signatures}")


def _nothing(module: Any, self: Any, *arguments: Any) -> None:
    return None


# --- behaviour ---


def _log(module: Any, logger: Any, severity: str, text: str) -> None:
    logger.log(Member("Severity", severity, 99), text)


def _start(module: Any, self: Any, logger: Any) -> None:
    assert isinstance(logger, module.ILogger)
    if not module.machine.starts:
        _log(module, logger, "ERROR", "CUDA initialization failure with error: 35")
        raise TypeError("pybind11::init(): factory function returned nullptr")
    self._facts["logger"] = logger


def _create_network(module: Any, self: Any, flags: int = 0) -> Any:
    return make(module, "INetworkDefinition", inputs=[], outputs=[], layers=[], flags=flags)


def _parse(module: Any, self: Any, path: str) -> bool:
    machine, network = module.machine, self._facts["network"]
    if machine.parser_errors or machine.parser_refuses:
        return False
    model = onnx.load(path)
    for tensor in model.graph.initializer:  # as the real parser: no dtype that the version lacks
        if not hasattr(module.DataType, DTYPES[tensor.data_type]) and tensor.data_type != onnx.TensorProto.INT64:
            return False
    network._facts.update(_network(module, model))
    return True


def _network(module: Any, model: onnx.ModelProto) -> dict[str, list[Any]]:
    """Returns inputs, outputs and layers as the real parser makes them: constants are layers, too."""
    machine = module.machine
    model = onnx.shape_inference.infer_shapes(model, strict_mode=True)
    graph = model.graph
    tensors = {v.name: _tensor(module, v) for v in (*graph.input, *graph.value_info, *graph.output)}
    layers = []
    for constant in graph.initializer:
        array = onnx.numpy_helper.to_array(constant)
        tensors[constant.name] = make(
            module, "ITensor", name=constant.name, dtype=_dtype(module, constant.data_type), shape=array.shape
        )
        layers.append(_layer(module, "CONSTANT", constant.name, "", [], [tensors[constant.name]]))
    for node in graph.node:
        if machine.drops_quantization and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            tensors[node.output[0]] = tensors[node.input[0]]
            continue
        name = node.name or f"node_of_{node.output[0]}"
        made = _layer(
            module,
            LAYERS.get(node.op_type, "UNARY"),
            name,
            f"[ONNX Layer: {name}]",
            [tensors[n] for n in node.input if n],
            [tensors[n] for n in node.output],
        )
        layers.append(made)
    return {
        "inputs": [tensors[v.name] for v in graph.input],
        "outputs": [tensors[v.name] for v in graph.output],
        "layers": layers,
    }


def _tensor(module: Any, value: onnx.ValueInfoProto) -> Any:
    dims = value.type.tensor_type.shape.dim
    return make(
        module,
        "ITensor",
        name=value.name,
        dtype=_dtype(module, value.type.tensor_type.elem_type),
        shape=tuple(d.dim_value if d.HasField("dim_value") else -1 for d in dims),
    )


def _dtype(module: Any, element: int) -> Any:
    name = DTYPES[element]
    if name == "INT64" and not hasattr(module.DataType, name):
        name = "INT32"  # TensorRT before 10 has no int64
    return getattr(module.DataType, name)


def _layer(module: Any, kind: str, name: str, metadata: str, inputs: list[Any], outputs: list[Any]) -> Any:
    if kind == "ATTENTION_INPUT" and not hasattr(module.LayerType, kind):
        kind = "PLUGIN_V2"
    return make(
        module,
        "ILayer",
        type=getattr(module.LayerType, kind),
        name=name,
        metadata=metadata,
        inputs=inputs,
        outputs=outputs,
        attention=make(module, "IAttention") if hasattr(module, "IAttention") else None,
    )


def _create_config(module: Any, self: Any) -> Any:
    return make(module, "IBuilderConfig", flags=set(), profiles=[], cache=None)


def _set_flag(module: Any, self: Any, flag: Any) -> None:
    assert flag.enum == "BuilderFlag"
    self._facts["flags"].add(flag.name)


def _add_profile(module: Any, self: Any, profile: Any) -> int:
    self._facts["profiles"].append(profile)
    index = module.machine.profile_index
    return len(self._facts["profiles"]) - 1 if index is None else index


def _set_timing_cache(module: Any, self: Any, cache: Any, ignore_mismatch: bool) -> bool:
    if cache._facts["content"] and not module.machine.timing_fits:
        return False
    self._facts["cache"] = cache
    return True


def _can_run(module: Any, self: Any, layer: Any) -> bool:
    return layer._facts["type"].name in module.machine.dla_layers


def _build(module: Any, self: Any, network: Any, config: Any) -> Memory | None:
    monitor = config._values.get("progress_monitor")
    if monitor is not None:
        monitor.phase_start("Building", None, module.machine.steps)
        for step in range(module.machine.steps):
            if not monitor.step_complete("Building", step):
                return None
        monitor.phase_finish("Building")
    for severity, text in module.machine.build_log:
        _log(module, self._facts["logger"], severity, text)
    if any(severity != "WARNING" for severity, _ in module.machine.build_log):
        return None
    if config._facts["cache"] is not None:
        config._facts["cache"]._facts["content"] += b"timed;"
    constants = [
        x for layer in network._facts["layers"] if layer.type.name == "CONSTANT" for x in layer._facts["outputs"]
    ]
    size = sum(int(np.prod(t.shape)) * _width(module, t) for t in constants)
    return Memory(b"plan" + bytes(size))


def _width(module: Any, tensor: Any) -> int:
    name = tensor.dtype.name
    return 4 if name == "INT8" and module.machine.stores_float else BYTES[name]


def _error(module: Any, self: Any, index: int) -> Any:
    return make(module, "ParserError", **module.machine.parser_errors[index])


def fact(name: str, default: Any = None) -> Callable[..., Any]:
    """A property or a method without arguments that gives what its object was made with."""
    return lambda module, self: self._facts.get(name, default)


def _item(name: str) -> Callable[..., Any]:
    return lambda module, self, index: self._facts[name][index]


def _count(name: str) -> Callable[..., int]:
    return lambda module, self: len(self._facts[name])


BEHAVIOUR: dict[str, Callable[..., Any]] = {
    "Builder.__init__": _start,
    "Builder.create_network": _create_network,
    "Builder.create_builder_config": _create_config,
    "Builder.create_optimization_profile": lambda m, self: make(m, "IOptimizationProfile"),
    "Builder.build_serialized_network": _build,
    "Builder.num_DLA_cores": lambda m, self: m.machine.dla_cores,
    "OnnxParser.__init__": lambda m, self, network, logger: self._facts.update(network=network, logger=logger),
    "OnnxParser.parse_from_file": _parse,
    "OnnxParser.num_errors": lambda m, self: len(m.machine.parser_errors),
    "OnnxParser.get_error": _error,
    **{
        f"ParserError.{n}": fact(n, default)
        for n, default in {
            "node": -1,
            "node_name": "",
            "node_operator": "",
            "desc": "",
            "code": Member("ErrorCode", "INVALID_NODE", 7),
            "local_function_stack": (),
        }.items()
    },
    "INetworkDefinition.num_inputs": _count("inputs"),
    "INetworkDefinition.num_outputs": _count("outputs"),
    "INetworkDefinition.num_layers": _count("layers"),
    "INetworkDefinition.get_input": _item("inputs"),
    "INetworkDefinition.get_output": _item("outputs"),
    "INetworkDefinition.get_layer": _item("layers"),
    **{f"*.{n}": fact(n) for n in ("name", "dtype", "shape", "type", "metadata", "attention")},
    "*.num_inputs": _count("inputs"),
    "*.num_outputs": _count("outputs"),
    "*.get_input": _item("inputs"),
    "*.get_output": _item("outputs"),
    "ITensor.is_shape_tensor": lambda m, self: self._facts["name"] in m.machine.shape_inputs,
    "IBuilderConfig.set_flag": _set_flag,
    "IBuilderConfig.add_optimization_profile": _add_profile,
    "IBuilderConfig.set_compute_capability": lambda m, self, capability, index: m.machine.capability_taken,
    "IBuilderConfig.create_timing_cache": lambda m, self, content: make(m, "ITimingCache", content=content),
    "IBuilderConfig.set_timing_cache": _set_timing_cache,
    "IBuilderConfig.get_timing_cache": fact("cache"),
    "IBuilderConfig.can_run_on_DLA": _can_run,
    "ITimingCache.serialize": lambda m, self: Memory(self._facts["content"]),
}
