"""Models that break naive int8, with data, and ways to run a plan or onnxruntime's own quantizer on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime
import onnxruntime.quantization as peer
from builders import onnx_graph

from edgemm.graph import ExportedGraph, serialize
from edgemm.partition import StageGraph, partition
from edgemm.quant.apply import apply_plan
from edgemm.quant.chain import Chain, OpenStage
from edgemm.quant.collect import collect


@dataclass(frozen=True)
class Case:
    """A float model, its stages, calibration samples, and test samples with labels where there are some."""

    graph: ExportedGraph
    stages: StageGraph
    samples: list[dict[str, np.ndarray]]
    test: dict[str, np.ndarray]
    labels: np.ndarray | None = None

    def table(self, calibrator="minmax"):
        return collect(self.stages, self.graph.io, self.samples, calibrator)

    def run(self, stages=None, plan=None, table=None, output="y"):
        """The output on the test samples: of float stages, or of planned ones."""
        stages = self.stages if stages is None else stages
        opened = {}
        if plan is not None:
            opened = {s.name: OpenStage.open(s.name, apply_plan(s, plan, table)) for s in stages.stages}
        return Chain(stages, self.graph.io, opened=opened).run(self.test)[output]

    def naive(self, folder, output="y", **options):
        """The output of onnxruntime.quantization.quantize_static with the same samples."""
        source, target = folder / "float.onnx", folder / "int8.onnx"
        source.write_bytes(serialize(self.graph.model))
        rows = iter([{n: v[None] for n, v in s.items()} for s in self.samples])

        class Reader(peer.CalibrationDataReader):
            def get_next(self) -> Any:
                return next(rows, None)

        options = {"per_channel": True, "activation_type": peer.QuantType.QUInt8} | options
        peer.quantize_static(source, target, Reader(), **options)
        session = onnxruntime.InferenceSession(target, providers=["CPUExecutionProvider"])
        return session.run([output], self.test)[0]


def case(text, weights, samples, test, labels=None, modalities=None):
    graph = onnx_graph(text, modalities, weights=weights)
    return Case(graph, partition(graph), samples, test, labels)


def rows_of(arrays):
    """Samples of a dict of arrays with the samples in front."""
    count = len(next(iter(arrays.values())))
    return [{n: v[i] for n, v in arrays.items()} for i in range(count)]


CLASSES = 16


def two_ranges(ratio=100.0, classes=CLASSES, seed=0, head="MatMul"):
    """Two modalities with a class each; the features of x are `ratio` times those of z.

    The head is fitted by ridge regression, so its weights make up for the ranges.
    """
    rng = np.random.default_rng(seed)
    weights = {
        "wa": (rng.normal(size=(48, 64)) / 7 * ratio).astype(np.float32),
        "ba": (rng.normal(size=64) * 0.1 * ratio).astype(np.float32),
        "wb": (rng.normal(size=(48, 64)) / 7).astype(np.float32),
        "bb": (rng.normal(size=64) * 0.1).astype(np.float32),
    }
    prototypes = rng.normal(size=(2, 1, 48)) + 0.1 * rng.normal(size=(2, classes, 48))

    def draw(count):
        labels = rng.integers(0, classes, (count, 2))
        x = prototypes[0][labels[:, 0]] + 0.02 * rng.normal(size=(count, 48))
        z = prototypes[1][labels[:, 1]] + 0.02 * rng.normal(size=(count, 48))
        return {"x": x.astype(np.float32), "z": z.astype(np.float32)}, labels

    def features(feed):
        a = np.maximum(feed["x"] @ weights["wa"] + weights["ba"], 0)
        b = np.maximum(feed["z"] @ weights["wb"] + weights["bb"], 0)
        return np.concatenate([a, b], 1).astype(np.float64)

    train, train_labels = draw(800)
    f = features(train)
    scale, mean = np.repeat([f[:, :64].std(), f[:, 64:].std()], 64), f.mean(0)
    f = (f - mean) / scale
    goal = np.concatenate([np.eye(classes)[train_labels[:, i]] - 1 / classes for i in (0, 1)], 1)
    w = np.linalg.solve(f.T @ f + 100 * np.eye(128), f.T @ goal) / scale[:, None]
    # wide enough that the planner makes the head int8
    weights["w"] = np.concatenate([w, np.zeros((128, 64 - 2 * classes))], 1).astype(np.float32)
    weights["b"] = -(mean @ weights["w"]).astype(np.float32)
    joined = "y = Gemm(j, w, b)" if head == "Gemm" else "t = MatMul(j, w) y = Add(t, b)"
    text = f"""g (float[batch,48] x, float[batch,48] z) => (float[batch,64] y) {{
        pa = MatMul(x, wa) qa = Add(pa, ba) ra = Relu(qa)
        pb = MatMul(z, wb) qb = Add(pb, bb) rb = Relu(qb)
        j = Concat<axis=1>(ra, rb) {joined} }}"""
    test, labels = draw(400)
    return case(text, weights, rows_of(draw(64)[0]), test, labels)
