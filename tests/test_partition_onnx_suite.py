"""The models of the ONNX backend test suite, each input a modality of its own: rewritten, cut, and run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import DISABLED, exported, run_stages, run_whole

from edgemm.graph import ExportedGraph
from edgemm.partition import partition
from edgemm.rewrite import rewrite
from edgemm.tensors import IOSpec

SUITE = Path(onnx.__file__).parent / "backend" / "test" / "data"
MODELS = sorted(
    p.parent
    for kind in ("simple", "pytorch-operator", "pytorch-converted")
    for p in SUITE.glob(f"{kind}/*/model.onnx")
)
FEWEST = 90  # onnxruntime has no kernel for some of them with its optimizations off; most it must run

pytestmark = pytest.mark.slow


def load(folder: Path) -> tuple[ExportedGraph, dict[str, np.ndarray]] | None:
    """Returns the model and its first test feed, or None if an input or output is no tensor."""
    proto = onnx.load(folder / "model.onnx")
    if not all(v.type.HasField("tensor_type") for v in (*proto.graph.input, *proto.graph.output)):
        return None
    weights = {t.name for t in proto.graph.initializer}
    names = [i.name for i in proto.graph.input if i.name not in weights]
    feed = {}
    for index, name in enumerate(names):
        tensor = onnx.TensorProto.FromString((folder / "test_data_set_0" / f"input_{index}.pb").read_bytes())
        feed[name] = onnx.numpy_helper.to_array(tensor)
    graph = exported(ir.from_proto(proto))
    inputs = tuple(i for i in graph.io.inputs if i.name in feed)
    return ExportedGraph(graph.model, IOSpec(inputs, graph.io.outputs, {n: n for n in names})), feed


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_suite_models_compute_the_same_after_rewrite_and_cut():
    checked = 0
    for folder in MODELS:
        loaded = load(folder)
        if loaded is None:
            continue
        graph, feed = loaded
        try:
            expected = run_whole(graph, feed, DISABLED)
        except Exception as error:
            if "onnxruntime" not in type(error).__module__:
                raise
            continue
        rewritten = rewrite(graph)[0]
        results = run_whole(rewritten, feed, DISABLED)
        chained = run_stages(partition(graph), feed, DISABLED)
        for name, array in expected.items():
            np.testing.assert_array_equal(chained[name], array, err_msg=f"{folder.name}: {name}")
            assert results[name].dtype == array.dtype, f"{folder.name}: {name}"
            if array.dtype.kind == "f":
                np.testing.assert_allclose(results[name], array, rtol=1e-3, atol=1e-5, err_msg=folder.name)
            else:
                np.testing.assert_array_equal(results[name], array, err_msg=folder.name)
        checked += 1
    assert checked >= FEWEST
