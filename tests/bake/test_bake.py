"""Steps in front of a graph: what it takes then, what it computes, and what stays float32."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from builders import onnx_graph, run_stages, run_whole

from edgemm.backends.targets import find_target
from edgemm.bake.front import bake, refusal
from edgemm.bake.verify import check_baked, random_rows, steps_graph
from edgemm.graph import PREPROCESS, ExportedGraph, serialize
from edgemm.lint import ERROR, lint
from edgemm.partition import partition
from edgemm.preprocess import parse, run
from edgemm.preprocess.front import InputSteps
from edgemm.quant.collect import collect
from edgemm.quant.placement import plan_quantization
from edgemm.quant.tensorrt.placement import plan_tensorrt, tensors_to_watch
from edgemm.rewrite.pipeline import rewrite
from edgemm.tensors import BATCH, TensorSpec

RGB = TensorSpec("image", "uint8", (BATCH, 60, 80, 3))
FLOATS = TensorSpec("image", "float32", (BATCH, 60, 80, 3))
NV12 = TensorSpec("image", "uint8", (BATCH, 90, 80))

CHAINS = {
    "imagenet": (RGB, ["bgr_to_rgb", {"resize": {"shorter": 40}}, {"center_crop": {"size": [32, 33]}}, "to_chw",
                       {"normalize": {"mean": [0.5, 0.4, 0.3], "std": [0.2]}}]),
    "gray": (RGB, ["grayscale", {"resize": {"size": [28, 28]}}, {"to_chw": {"scale": 1.0}}]),
    "edges": (RGB, [{"crop": {"box": [3, 4, 70, 50]}}, "sobel",
                    {"normalize": {"mean": [0], "std": [9], "axis": 3}}]),
    "linear": (RGB, [{"resize": {"size": [90, 28], "antialias": False}}]),
    "one axis": (RGB, [{"resize": {"size": [60, 28]}}]),
    "floats": (FLOATS, [{"resize": {"size": [28, 28]}}, "grayscale", "sobel", "to_chw"]),
    "video": (NV12, ["nv12_to_rgb", {"resize": {"size": [33, 28]}}, "to_chw"]),
    "jpeg": (NV12, [{"nv12_to_rgb": {"full_range": True}}]),
    "same size": (RGB, [{"resize": {"size": [60, 80]}}, {"to_chw": {"scale": 1.0}}]),
}  # fmt: skip


@pytest.mark.parametrize("chain", CHAINS)
def test_the_graph_computes_what_the_steps_do(chain: str) -> None:
    raw, steps = CHAINS[chain]
    way = InputSteps("image", raw, parse(steps))
    onnx.checker.check_model(onnx.load_from_string(serialize(steps_graph(way).model)), full_check=True)
    for rows in (random_rows(raw), random_rows(raw, batch=1)):
        assert check_baked(way, rows) <= (1e-6 if raw.dtype == "float32" else 1e-7)


BOX = {"range": [-1, -1, -1, 1, 1, 1], "cell": 0.25}
CLOUDS: dict[str, Any] = {
    "bev": {"bev": {**BOX, "channels": ["height", "intensity", "density", "count"]}},
    "features": {"pillars": {**BOX, "pillars": 20, "points": 3}},
    "indices": {"pillars": {**BOX, "pillars": 64, "points": 3, "give": "indices"}},
    "counts": {"pillars": {**BOX, "pillars": 64, "points": 3, "give": "counts"}},
}


@pytest.mark.parametrize("kind", CLOUDS)
@pytest.mark.parametrize("points", [200, "points"])
def test_the_graph_computes_what_the_steps_do_with_points(kind: str, points: int | str) -> None:
    way = InputSteps("lidar", TensorSpec("lidar", "float32", (BATCH, points, 5)), parse([CLOUDS[kind]]))
    onnx.checker.check_model(onnx.load_from_string(serialize(steps_graph(way).model)), full_check=True)
    clouds = np.random.default_rng(0).normal(0, 0.8, (3, 200, 5)).astype(np.float32)
    clouds[:, ::17, 2] = np.nan
    clouds[2] = np.nan
    assert check_baked(way, clouds) <= 1e-6
    stages = partition(rewrite(steps_graph(way))[0])
    np.testing.assert_allclose(run_stages(stages, {"lidar": clouds})["made"], run(way.steps, clouds), atol=1e-5)


def net(size: int = 28) -> ExportedGraph:
    """Returns a model of an image and a vector; its convolution and its product can be int8."""
    random = np.random.default_rng(0)
    return onnx_graph(
        f"""g (float[batch,3,{size},{size}] image, float[batch,40] imu) => (float[batch,64] out) {{
            c = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (image, w1)
            d = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c, w2)
            r = Relu (d)
            m = GlobalAveragePool (r)
            f = Flatten (m)
            j = Concat <axis = 1> (f, imu)
            out = MatMul (j, w3)
        }}""",
        weights={
            "w1": random.normal(0, 0.3, (32, 3, 3, 3)).astype(np.float32),
            "w2": random.normal(0, 0.1, (32, 32, 3, 3)).astype(np.float32),
            "w3": random.normal(0, 0.1, (72, 64)).astype(np.float32),
        },
    )


STEPS = parse([{"resize": {"size": [28, 28]}}, "to_chw", {"normalize": {"mean": [0.5], "std": [0.25]}}])


def feed(raw: TensorSpec, batch: int = 3) -> dict[str, np.ndarray]:
    imu = np.random.default_rng(1).normal(size=(batch, 40)).astype(np.float32)
    return {raw.name: random_rows(raw, batch), "imu": imu}


@pytest.mark.parametrize("name", ["image", "camera", "c"])
def test_in_front_of_a_model(name: str) -> None:
    raw = TensorSpec(name, "uint8", (BATCH, 60, 80, 3))
    graph = net()
    before = serialize(graph.model)
    made = bake(graph, [InputSteps("image", raw, STEPS)])
    assert serialize(graph.model) == before
    assert [str(i) for i in made.io.inputs] == [f"{name}[batch,60,80,3] uint8", "imu[batch,40] float32"]
    assert made.io.modalities == {name: "image", "imu": "imu"}
    onnx.checker.check_model(onnx.load_from_string(serialize(made.model)), full_check=True)
    given = feed(raw)
    want = run_whole(graph, {"image": run(STEPS, given[name]), "imu": given["imu"]})["out"]
    np.testing.assert_allclose(run_whole(made, given)["out"], want, rtol=1e-5, atol=1e-5)
    stages = partition(rewrite(made)[0])
    assert [s.name for s in stages.stages] == ["image", "imu", "fusion"] or len(stages.stages) == 2
    np.testing.assert_allclose(run_stages(stages, given)["out"], want, rtol=1e-4, atol=1e-5)


def test_two_inputs_of_one_raw_array() -> None:
    graph = onnx_graph(
        """g (float[batch,3,8,8] left, float[batch,1,4,4] right) => (float[batch,1] out) {
            a = ReduceMean <keepdims = 0> (left, axes)
            b = ReduceMean <keepdims = 0> (right, axes)
            s = Sub (a, b)
            out = Unsqueeze (s, one)
        }""",
        {"left": "camera", "right": "camera"},
        weights={"axes": np.array([1, 2, 3]), "one": np.array([1])},
    )
    raw = TensorSpec("frame", "uint8", (BATCH, 16, 16, 3))
    first = InputSteps("left", raw, parse([{"resize": {"size": [8, 8]}}, "to_chw"]))
    other = InputSteps("right", raw, parse(["grayscale", {"resize": {"size": [4, 4]}}, "to_chw"]))
    made = bake(graph, [first, other])
    assert [i.name for i in made.io.inputs] == ["frame"]
    assert made.io.modalities == {"frame": "camera"}
    frames = random_rows(raw, 3)
    want = run_whole(graph, {"left": run(first.steps, frames), "right": run(other.steps, frames)})["out"]
    np.testing.assert_allclose(run_whole(made, {"frame": frames})["out"], want, rtol=1e-5, atol=1e-6)


def test_steps_stay_float() -> None:
    """A resize from 200 x 200 is a product with weights like any other, if nothing said what it is."""
    raw = TensorSpec("image", "uint8", (BATCH, 200, 200, 3))
    graph, _ = rewrite(
        bake(net(64), [InputSteps("image", raw, parse([{"resize": {"size": [64, 64]}}, "to_chw"]))])
    )
    marked = {str(n.name) for n in graph.model.graph if PREPROCESS in n.metadata_props}
    assert [n.op_type for n in graph.model.graph if n.name in marked].count("MatMul") == 4
    stages = partition(graph)
    rows = [{n: a[i] for n, a in feed(raw, 4).items()} for i in range(4)]
    plan = plan_quantization(stages, collect(stages, graph.io, rows, "minmax"))
    found = {d.node: d for d in plan.decisions}
    assert {d.precision for n, d in found.items() if n in marked} == {"fp32"}
    assert "int8" in {d.precision for d in found.values()}
    for low in ("int8", "fp8", "int4-weight"):
        table = collect(stages, graph.io, rows, "minmax", tensors=tensors_to_watch)
        decisions = plan_tensorrt(stages, table, low=low).decisions
        assert {d.precision for d in decisions if d.node in marked} == {"fp32"}
        assert {d.precision for d in decisions} > {"fp32"}


def test_says_what_no_graph_can_do() -> None:
    raw = TensorSpec("image", "uint8", (BATCH, "height", 80, 3))
    why = refusal(InputSteps("image", raw, parse([{"resize": {"size": [28, 28]}}])))
    assert why is not None
    assert "known height and width in a graph" in str(why)


@pytest.mark.parametrize("chain", ["imagenet", "gray", "edges", "floats", "video", *CLOUDS])
def test_tensorrt_takes_the_nodes(chain: str) -> None:
    cloud = TensorSpec("lidar", "float32", (BATCH, 200, 5))
    raw, steps = CHAINS[chain] if chain in CHAINS else (cloud, [CLOUDS[chain]])
    graph = steps_graph(InputSteps(raw.name, raw, parse(steps)))
    found = lint(graph.model, find_target("jetson-orin-agx"))
    assert [str(f) for f in found if f.severity == ERROR] == []
