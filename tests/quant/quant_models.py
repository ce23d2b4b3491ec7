"""Small real torch models, exported as users export, as a StageGraph of one stage each."""

from __future__ import annotations

import collections
import contextlib
import io as streams
import warnings
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import torch
from torch import nn

from edgemm.graph import serialize
from edgemm.partition import Stage, StageGraph
from edgemm.quant.collect import collect
from edgemm.quant.placement import plan_quantization
from edgemm.tensors import IOSpec, TensorSpec


class Residual(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.a = nn.Conv2d(c, c, 3, padding=1)
        self.b = nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return torch.relu(x + self.b(torch.relu(self.a(x))))


class Cnn(nn.Module):
    """Stem with 3 channels, pooling, residual block, strided convolution, classifier."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1),
            nn.BatchNorm2d(32),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(32, 32, 3, padding=1),
            nn.ReLU(),
            Residual(32),
            nn.Conv2d(32, 64, 3, stride=2, padding=1),
            nn.ReLU6(),
            nn.Flatten(),
        )
        self.head = nn.Linear(64 * 16, 96)
        self.out = nn.Linear(96, 10)

    def forward(self, x):
        return self.out(torch.relu(self.head(self.body(x))))


class Attention(nn.Module):
    def __init__(self, d=64):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(d, 2, 4 * d, batch_first=True, activation="gelu", dropout=0.0)

    def forward(self, x):
        return self.layer(x).mean(1)


class Mlp(nn.Module):
    def __init__(self):
        super().__init__()
        self.f = nn.Sequential(nn.Linear(256, 384), nn.ReLU(), nn.Linear(384, 384), nn.ReLU(), nn.Linear(384, 8))

    def forward(self, x):
        return self.f(x)


class Branches(nn.Module):
    """Two convolution branches, concatenated by channel, then a convolution; x is read by both."""

    def __init__(self):
        super().__init__()
        self.a = nn.Conv1d(16, 24, 3, padding=1)
        self.b = nn.Conv1d(16, 40, 5, padding=2)
        self.c = nn.Conv1d(64, 32, 3, padding=1)

    def forward(self, x):
        joined = torch.cat([torch.relu(self.a(x)), torch.relu(self.b(x))], 1)
        return self.c(joined).mean(-1)


SHAPES = {Cnn: (3, 16, 16), Attention: (12, 64), Mlp: (256,), Branches: (16, 40)}


@lru_cache
def exported(model_class):
    """The ONNX bytes of the model with a dynamic batch."""
    torch.manual_seed(0)
    model = model_class().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 1.5)
    return export(model, torch.randn(2, *SHAPES[model_class]))


def export(model, *inputs):
    names = ["x", "y", "z"][: len(inputs)]
    with contextlib.redirect_stdout(streams.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.export warns about nn.GRU's own attributes
        program = torch.onnx.export(
            model,
            inputs,
            dynamo=True,
            dynamic_shapes=tuple({0: torch.export.Dim("batch")} for _ in inputs),
            input_names=names,
            output_names=["out"],
            verbose=False,
        )
    return program.model_proto.SerializeToString()


def stage_of(content, name="whole"):
    model = ir.from_proto(onnx.load_from_string(content))
    specs = [
        [
            TensorSpec(v.name, "float32", tuple(d if isinstance(d, int) else str(d) for d in v.shape))
            for v in values
        ]
        for values in (model.graph.inputs, model.graph.outputs)
    ]
    return Stage(name, ("x",), "encoder", tuple(specs[0]), tuple(specs[1]), model, len(model.graph), 0)


def chain_of(*stages):
    return StageGraph(tuple(stages), (), ())


def io_of(stage):
    inputs = tuple(TensorSpec(i.name, i.dtype, ("batch", *i.shape[1:])) for i in stage.inputs)
    return IOSpec(inputs, stage.outputs, {i.name: i.name for i in inputs})


def samples_of(model_class, n=24, seed=0):
    rng = np.random.default_rng(seed)
    return [{"x": rng.normal(size=SHAPES[model_class]).astype(np.float32)} for _ in range(n)]


@lru_cache
def prepared(model_class, calibrator="minmax"):
    """Stage, table and plan of a model."""
    stage = stage_of(exported(model_class))
    table = collect(chain_of(stage), io_of(stage), samples_of(model_class), calibrator)
    return stage, table, plan_quantization(chain_of(stage), table)


def session(model, optimized: Path | None = None):
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return ort.InferenceSession(serialize(model), options, providers=["CPUExecutionProvider"])


def kernels(model, folder: Path):
    """Operator counts of the graph that ONNX Runtime really runs."""
    path = folder / "optimized.onnx"
    session(model, path)
    return collections.Counter(n.op_type for n in onnx.load(path).graph.node)


def sqnr(reference, other):
    noise = float(((reference - other) ** 2).sum())
    return 10 * np.log10(float((reference**2).sum()) / max(noise, 1e-30))
