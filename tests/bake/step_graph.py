"""A graph of nothing but steps, run by ONNX Runtime: what a baked input computes."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from edgemm.bake.registry import emitter
from edgemm.bake.tape import Tape
from edgemm.graph import serialize
from edgemm.preprocess.step import Step, name_of
from edgemm.tensors import TensorSpec

OPSETS = (18, 20)


def bake_alone(steps: Sequence[Step], spec: TensorSpec, opset: int = OPSETS[0]) -> bytes:
    """Returns the steps as an ONNX file that the checker accepts, from input `raw` to output `made`."""
    dtype = ir.DataType.from_numpy(np.dtype(spec.dtype))
    raw = value = ir.Value(name="raw", shape=ir.Shape(spec.shape), type=ir.TensorType(dtype))
    tapes = []
    for step in steps:
        write = emitter(name_of(step))
        assert write is not None, f"{name_of(step)} has no emitter"
        tapes.append(Tape(f"raw/{len(tapes)}_{name_of(step)}"))
        value = write(tapes[-1], value, step, spec)
        spec = step.output(spec)
    value.name, value.shape = "made", ir.Shape(spec.shape)
    value.type = ir.TensorType(ir.DataType.from_numpy(np.dtype(spec.dtype)))
    graph = ir.Graph(
        [raw],
        [value],
        nodes=[n for t in tapes for n in t.nodes],
        initializers=[i for t in tapes for i in t.initializers],
        opset_imports={"": opset},
        name="steps",
    )
    data = serialize(ir.Model(graph, ir_version=10))
    onnx.checker.check_model(onnx.load_from_string(data), full_check=True)
    return data


def run_baked(steps: Sequence[Step], spec: TensorSpec, batch: np.ndarray, opset: int = OPSETS[0]) -> np.ndarray:
    """Returns what ONNX Runtime makes of a batch."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    data = bake_alone(steps, spec, opset)
    session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    (made,) = session.run(None, {"raw": batch})
    return made
