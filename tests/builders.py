"""Tiny fusion models in code, for everybody's tests, and a plain way to run what becomes of them.

`onnx_graph(text, modalities)` makes an ExportedGraph from ONNX text, `torch_graph(module, example, modalities)`
from a torch module by torch.onnx.export. `run_whole` and `run_stages` run a graph before and after the partition.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime

from edgemm.graph import ExportedGraph
from edgemm.partition import StageGraph, partition
from edgemm.tensors import BATCH, Feed, IOSpec, StateSpec, TensorSpec

DISABLED = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
DEFAULT = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL


def onnx_graph(
    text: str,
    modalities: Mapping[str, str] | None = None,
    *,
    states: Sequence[tuple[str, str]] = (),
    weights: Mapping[str, np.ndarray] | None = None,
) -> ExportedGraph:
    """Returns the graph of `text`, the body of an ONNX text model: `g (float[batch,4] a) => (...) {...}`.

    Args:
        text: A graph in ONNX text; opset 20, IR version 10. A leading `<...>` header overrides both.
        modalities: Input -> modality; each input is its own modality by default.
        states: (input, output) pairs.
        weights: Initializers, added under their names.
    """
    header = "" if text.lstrip().startswith("<") else '<ir_version: 10, opset_import: ["": 20]>\n'
    proto = onnx.parser.parse_model(header + text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    return exported(ir.from_proto(proto), modalities, states=states)


def torch_graph(
    module: Any,
    example: Mapping[str, Any],
    modalities: Mapping[str, str] | None = None,
    *,
    states: Sequence[tuple[str, str]] = (),
    outputs: Sequence[str] = ("out",),
    dynamic: Mapping[str, Mapping[int, str]] | None = None,
) -> ExportedGraph:
    """Returns `module` exported by torch.onnx.export with a dynamic batch (axis 0 of every input).

    Args:
        module: A torch module; its forward takes the inputs in the order of `example`.
        example: Input name -> tensor, with a batch of 2 or more.
        modalities: Input -> modality; each input is its own modality by default.
        states: (input, output) pairs.
        outputs: Output names.
        dynamic: Input -> axis -> symbol, where axis 0 alone is not what the test wants.
    """
    import torch

    shapes = {n: dict((dynamic or {}).get(n, {0: BATCH})) for n in example}
    named = {
        n: {a: torch.export.Dim(s, min=1, max=4096) if isinstance(s, str) else s for a, s in d.items()}
        for n, d in shapes.items()
    }
    program = torch.onnx.export(
        module.eval(),
        tuple(example.values()),
        input_names=list(example),
        output_names=list(outputs),
        dynamic_shapes=tuple(named.values()),
        dynamo=True,
        verbose=False,
    )
    return exported(program.model, modalities, states=states)


def exported(
    model: ir.Model, modalities: Mapping[str, str] | None = None, *, states: Sequence[tuple[str, str]] = ()
) -> ExportedGraph:
    """Returns `model` with the signature that its inputs and outputs declare."""
    inputs = tuple(_spec(v) for v in model.graph.inputs)
    kept = {i for i, _ in states}
    return ExportedGraph(
        model,
        IOSpec(
            inputs=inputs,
            outputs=tuple(_spec(v) for v in model.graph.outputs),
            modalities={i.name: (modalities or {}).get(i.name, i.name) for i in inputs if i.name not in kept},
            states=tuple(StateSpec(i, o) for i, o in states),
        ),
    )


def _spec(value: ir.Value) -> TensorSpec:
    assert value.name
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    dims = value.shape if value.shape is not None else ()
    return TensorSpec(value.name, dtype, tuple(d if isinstance(d, int) else str(d.value) for d in dims))


def random_feed(graph: ExportedGraph, batch: int = 3, seed: int = 0, **dims: int) -> dict[str, np.ndarray]:
    """Returns random arrays for every input: floats from a normal distribution, integers 0 or 1.

    Args:
        graph: Whose inputs to fill.
        batch: Size of the symbolic `batch`, and of every symbol that `dims` does not give.
        seed: Of the random numbers.
        **dims: Symbol -> size.
    """
    rng = np.random.default_rng(seed)
    feed: dict[str, np.ndarray] = {}
    for spec in graph.io.inputs:
        shape = tuple(d if isinstance(d, int) else dims.get(d, batch) for d in spec.shape)
        dtype = np.dtype(spec.dtype)
        array = rng.standard_normal(shape) if dtype.kind == "f" else rng.integers(0, 2, shape)
        feed[spec.name] = array.astype(dtype)
    return feed


def session(model: ir.Model, level: Any = DEFAULT) -> Any:
    """Returns an onnxruntime session on one CPU thread, after the ONNX checker has passed the model."""
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])


def run_whole(graph: ExportedGraph, feed: Feed, level: Any = DEFAULT) -> dict[str, np.ndarray]:
    """Returns the outputs of the unpartitioned graph by name."""
    runner = session(graph.model, level)
    names = [o.name for o in runner.get_outputs()]
    return dict(zip(names, runner.run(names, dict(feed)), strict=True))


def run_stages(stage_graph: StageGraph, feed: Feed, level: Any = DEFAULT) -> dict[str, np.ndarray]:
    """Runs the stages in their order, each fed from the model's inputs and the stages before it.

    Returns:
        Every tensor that was produced: graph outputs and cut tensors.
    """
    known: dict[str, np.ndarray] = dict(feed)
    produced: dict[str, np.ndarray] = {}
    for stage in stage_graph.stages:
        runner = session(stage.model, level)
        names = [o.name for o in stage.outputs]
        results = runner.run(names, {i.name: known[i.name] for i in stage.inputs})
        produced.update(zip(names, results, strict=True))
        known.update(produced)
    return produced


@functools.cache
def concat_model() -> ExportedGraph:
    """Returns an image and an audio encoder (each Gemm, Relu) joined by Concat into two classes. Opset 20."""
    rng = np.random.default_rng(0)
    shapes = {"wi": (8, 6), "wa": (5, 6), "wh": (12, 2)}
    return onnx_graph(
        """fusion (float[batch,8] image, float[batch,5] audio) => (float[batch,2] logits) {
            i0 = MatMul(image, wi)  i1 = Relu(i0)
            a0 = MatMul(audio, wa)  a1 = Relu(a0)
            joined = Concat<axis=1>(i1, a1)
            logits = MatMul(joined, wh)
        }""",
        weights={n: rng.standard_normal(s).astype(np.float32) for n, s in shapes.items()},
    )


def partition_and_compare(graph: ExportedGraph, *feeds: Feed) -> StageGraph:
    """Returns the stages of `graph` after comparing them with the whole on each feed.

    With ONNX Runtime's graph optimizations off, the chain must give the same bits. At the default level ONNX
    Runtime fuses nodes of the whole graph that the cut separates (a MatMul in an encoder with the Add behind it,
    say), so the last bit may differ: there the bound is a few float32 roundings.
    """
    stage_graph = partition(graph)
    for feed in feeds:
        whole, chained = run_whole(graph, feed, DISABLED), run_stages(stage_graph, feed, DISABLED)
        for name, expected in whole.items():
            got = chained[name]
            assert got.dtype == expected.dtype, name
            assert got.shape == expected.shape, name
            assert got.tobytes() == expected.tobytes(), f"{name}: {np.abs(got - expected).max()}"
        whole, chained = run_whole(graph, feed, DEFAULT), run_stages(stage_graph, feed, DEFAULT)
        for name, expected in whole.items():
            np.testing.assert_allclose(chained[name], expected, rtol=2e-6, atol=2e-6, err_msg=name)
    return stage_graph


def write_model_with_outside_weight(path: Path) -> None:
    """Writes `y = x + w` to `path`, in a folder that it makes, with `w` in the file `secret` outside of it."""
    text = '<ir_version: 10, opset_import: ["" : 20]> g (float[n,2] x) => (float[n,2] y) { y = Add(x, w) }'
    model = onnx.parser.parse_model(text)
    weight = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    weight.external_data.add(key="location", value="../secret")
    model.graph.initializer.append(weight)
    path.parent.mkdir()
    path.write_bytes(model.SerializeToString())
