"""Coordinates stay float32, and features do not, under plans for TensorRT."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest
import torch
from builders import random_feed, torch_graph
from plan_models import Prepared, applied
from torch import nn

from edgemm.partition import partition
from edgemm.quant.collect import collect
from edgemm.quant.plan import FLOAT, HALF, INT8
from edgemm.quant.tensorrt.geometry import GEOMETRY, geometry_cone
from edgemm.quant.tensorrt.placement import plan_tensorrt, tensors_to_watch
from edgemm.rewrite.pipeline import rewrite

SIDE = 1600.0


class Painted(nn.Module):
    """Image features, read where the intrinsics put lidar points; the depth and a point encoder go in with them.

    Gives the scores, and the pixel coordinates and depth of every point.
    """

    def __init__(self) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1))
        self.points = nn.Sequential(nn.Linear(3, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32))
        self.out = nn.Sequential(nn.Linear(65, 64), nn.ReLU(), nn.Linear(64, 8))

    def forward(self, image: torch.Tensor, lidar: torch.Tensor, intrinsics: torch.Tensor) -> Any:
        seen = lidar @ intrinsics.transpose(1, 2)
        depth = seen[..., 2:].abs() + 1.0
        pixel = seen[..., :2] / depth
        grid = pixel / SIDE * 2.0 - 1.0
        read = nn.functional.grid_sample(self.image(image), grid[:, :, None], align_corners=False)
        painted = read[..., 0].transpose(1, 2)
        return self.out(torch.cat([painted, self.points(lidar), depth], -1)), pixel, depth


class Shifted(nn.Module):
    """Two images, joined; each place reads the features where an offset that they give says."""

    def __init__(self) -> None:
        super().__init__()
        self.mix, self.offset = nn.Conv2d(32, 32, 3, padding=1), nn.Conv2d(32, 2, 1)
        self.left, self.right = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(3, 16, 3, padding=1)
        self.out = nn.Conv2d(32, 16, 1)

    def forward(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.mix(torch.cat([self.left(left), self.right(right)], 1)))
        grid = torch.tanh(self.offset(features)).permute(0, 2, 3, 1) * 0.9 + 0.05
        return self.out(nn.functional.grid_sample(features, grid, align_corners=False))


class Clouds(nn.Module):
    """Two inputs with weights of their own, joined."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.b = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.out = nn.Linear(128, 32)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        x = torch.cat([self.a(a + 1.0), self.b(b)], -1)
        return self.out(x * x)


def prepared(model: nn.Module, example: dict[str, torch.Tensor], *outputs: str) -> Prepared:
    torch.manual_seed(0)
    graph, _ = rewrite(torch_graph(model.eval(), example, outputs=outputs))
    stages = partition(graph)
    samples = [{n: 3.0 * v[0] for n, v in random_feed(graph, 1, seed).items()} for seed in range(8)]
    return graph, stages, collect(stages, graph.io, samples, "minmax", tensors=tensors_to_watch)


def run(models: dict[str, ir.Model], feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    values = dict(feed)
    for model in models.values():
        options = ort.SessionOptions()
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
        given = {i.name: values[i.name] for i in session.get_inputs()}
        values |= zip((o.name for o in session.get_outputs()), session.run(None, given), strict=True)
    return values


@pytest.fixture(scope="module")
def painted() -> Prepared:
    example = {"image": torch.rand(2, 3, 16, 16), "lidar": torch.rand(2, 12, 3), "intrinsics": torch.rand(2, 3, 3)}
    return prepared(Painted(), example, "y", "pixel", "depth")


@pytest.mark.parametrize("half", ["fp16", "bf16"])
def test_pixels_and_depth_are_those_of_float(painted: Prepared, half: str) -> None:
    graph, stages, table = painted
    plan = plan_tensorrt(stages, table, half)
    decided = {d.node: d for d in plan.decisions}
    for stage in stages.stages:
        for node in stage.model.graph:
            if node.op_type in ("Abs", "Div"):
                found = decided[str(node.name)]
                assert (found.precision, found.rule) == (FLOAT, "geometry")
                assert "GridSample" in found.reason or "'intrinsics'" in found.reason
    if half == "fp16":
        feed = random_feed(graph, 2, 7) | {"intrinsics": np.full((2, 3, 3), 700.0, np.float32)}
        planned = run(applied(stages, plan, table), feed)
        float_ = run({s.name: s.model for s in stages.stages}, feed)
        for name in ("pixel", "depth"):
            np.testing.assert_array_equal(planned[name], float_[name])
        assert (planned["y"] != float_["y"]).any()


def test_features_beside_coordinates_are_int8_and_half(painted: Prepared) -> None:
    _, stages, table = painted
    plan = plan_tensorrt(stages, table)
    layers = [d for d in plan.decisions if d.op in ("Conv", "Gemm", "MatMul") and d.rule != "geometry"]
    assert [d.precision for d in layers].count(INT8) >= 4
    assert {d.precision for d in layers} <= {INT8, HALF}
    assert {d.precision for d in plan.decisions if d.op == "Relu"} == {HALF}


def test_a_grid_that_a_layer_gives_is_float_from_there_on() -> None:
    _, stages, table = prepared(
        Shifted(), {"left": torch.rand(2, 3, 16, 16), "right": torch.rand(2, 3, 16, 16)}, "y"
    )
    plan = plan_tensorrt(stages, table)
    geometry = {d.op: d for d in plan.decisions if d.rule == "geometry"}
    assert {"Tanh", "Mul", "Add", "Transpose"} <= set(geometry)
    assert "GridSample" in geometry["Tanh"].reason
    assert {d.precision for d in plan.decisions if d.op in ("Conv", "Relu")} <= {INT8, HALF}


@pytest.mark.parametrize("name", ["points", "lidar2img", "wav2vec"])
def test_an_encoder_of_an_input_named_like_geometry_is_no_geometry(name: str) -> None:
    _, stages, table = prepared(Clouds(), {name: torch.rand(2, 8, 64), "b": torch.rand(2, 8, 64)}, "y")
    plan = plan_tensorrt(stages, table)
    geometry = [d for d in plan.decisions if d.rule == "geometry"]
    assert [d.op for d in geometry] == ["Add"]  # in front of the first layer
    assert f"'{name}'" in geometry[0].reason
    assert {d.precision for d in plan.decisions if d.op in ("Gemm", "MatMul")} == {INT8}


def test_names_of_tensors_inside_are_no_geometry(cameras: Any) -> None:
    assert GEOMETRY.search("conv2d")  # the name that an exporter gives to what a convolution makes
    assert not geometry_cone(cameras[1])


@pytest.mark.parametrize(
    ("name", "is_geometry"),
    [("points", True), ("lidar_xyz", True), ("coords.1", True), ("grid", True), ("image", False), ("text", False)],
)
def test_names(name: str, is_geometry: bool) -> None:
    assert bool(GEOMETRY.search(name)) == is_geometry
