"""Real engines by TensorRT-RTX, which builds for any of its GPUs without one: `pip install 'edgemm[rtx]'`.

Nothing here runs an engine: that needs a GPU.
"""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from rtx import SKIP
from trt_graphs import half, model_of, quantize, random_weights, write

from edgemm.backends._trt.onnx_file import read_onnx
from edgemm.backends.tensorrt import (
    BuildOptions,
    BuildRequest,
    EngineBuild,
    OptimizationProfile,
    Progress,
    SizeRange,
    Supervision,
    build_engine,
    make_profiles,
    read_sidecar,
)
from edgemm.errors import BackendError, RecipeError
from edgemm.runtime._trt.module import load_module
from edgemm.tensors import ShapeRange

pytestmark = pytest.mark.skipif(bool(SKIP), reason=SKIP)

SMS = (75, 86, 89, 120)
AMPERE = (86,)
BATCH = SizeRange(1, 2, 4)


def request(
    model: ir.Model, folder: Path, capabilities: tuple[int, ...] = AMPERE, name: str = "model", **more: Any
) -> BuildRequest:
    onnx = write(model, folder, name)
    inputs = read_onnx(onnx).inputs
    symbols = {d for i in inputs for d in i.shape if isinstance(d, str)}
    ranges = more.pop("ranges", [dict.fromkeys(symbols, BATCH)])
    profiles = more.pop("profiles", None)
    return BuildRequest(
        onnx,
        folder / f"{name}.engine",
        "tensorrt_rtx",
        stage="fusion",
        modalities=("camera", "lidar"),
        compute_capabilities=capabilities,
        profiles=make_profiles(inputs, ranges) if profiles is None else profiles,
        **more,
    )


def build(model: ir.Model, folder: Path, *args: Any, **more: Any) -> EngineBuild:
    return build_engine(request(model, folder, *args, **more))


def refusal(model: ir.Model, folder: Path, **more: Any) -> BackendError | None:
    """Returns what a build is refused with, None when it is not."""
    try:
        build(model, folder, **more)
    except BackendError as error:
        return error
    return None


# --- every kind of join ---

C = "float[batch,32,8,8]"
F = "float[batch,64]"
T = "float[batch,16,64]"
SQUARE = {"w1": (64, 64), "w2": (64, 64)}
JOINS: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {
    "concat": (
        f"g ({F} a, {F} b) => (float[batch,32] y) {{ [j] c = Concat<axis=1>(a, b) [fc] y = MatMul(c, w) }}",
        {"w": (128, 32)},
    ),
    "add": (
        f"g ({F} a, {F} b) => ({F} y) {{ p = MatMul(a, w1) q = MatMul(b, w2) [j] y = Add(p, q) }}",
        SQUARE,
    ),
    "residual add": (
        f"""g ({C} a, {C} b) => ({C} y) {{
            p = Conv<pads=[1,1,1,1]>(a, w1) r = Relu(p) q = Conv<pads=[1,1,1,1]>(r, w2)
            s = Relu(b) [j] t = Add(q, s) y = Relu(t)
        }}""",
        {"w1": (32, 32, 3, 3), "w2": (32, 32, 3, 3)},
    ),
    "weighted sum": (
        f"""g ({F} a, {F} b) => ({F} y) <float u = {{0.3}}, float v = {{0.7}}> {{
            p = MatMul(a, w1) q = MatMul(b, w2) s = Mul(p, u) t = Mul(q, v) [j] y = Add(s, t)
        }}""",
        SQUARE,
    ),
    "gate": (
        f"""g ({F} a, {F} b) => ({F} y) {{
            p = MatMul(a, w1) q = Sigmoid(p) r = MatMul(b, w2) [j] y = Mul(q, r)
        }}""",
        SQUARE,
    ),
    "product": (
        f"g ({F} a, {F} b) => ({F} y) {{ p = MatMul(a, w1) q = MatMul(b, w2) [j] y = Mul(p, q) }}",
        SQUARE,
    ),
    "bilinear": (
        f"""g ({F} a, {F} b) => (float[batch,32] y)
        <int64[1] last = {{-1}}, int64[1] mid = {{1}}, int64[2] flat = {{0, 4096}}> {{
            p = Unsqueeze(a, last) q = Unsqueeze(b, mid) [j] o = MatMul(p, q)
            f = Reshape(o, flat) [fc] y = MatMul(f, w)
        }}""",
        {"w": (4096, 32)},
    ),
    "attention": (
        f"""g ({T} a, {T} b) => ({T} y) {{
            q = MatMul(a, w1) k = MatMul(b, w2) v = MatMul(b, w3) kt = Transpose<perm=[0,2,1]>(k)
            [j] s = MatMul(q, kt) p = Softmax<axis=-1>(s) y = MatMul(p, v)
        }}""",
        {**SQUARE, "w3": (64, 64)},
    ),
    "select": (
        f"""g ({F} a, {F} b, bool[batch,1] there) => ({F} y) {{
            p = MatMul(a, w1) q = MatMul(b, w2) [j] y = Where(there, p, q)
        }}""",
        SQUARE,
    ),
    "gemm transB": (
        f"""g ({F} a, {F} b) => ({F} y) {{
            [j] s = Add(a, b) [fc] y = Gemm<transB=1>(s, w1, bias)
        }}""",
        {"w1": (64, 64), "bias": (64,)},
    ),
    "depthwise": (
        f"""g ({C} a, {C} b) => ({C} y) {{
            [j] s = Add(a, b) y = Conv<group=32, pads=[1,1,1,1]>(s, w)
        }}""",
        {"w": (32, 1, 3, 3)},
    ),
}


def join(kind: str) -> ir.Model:
    text, shapes = JOINS[kind]
    return model_of(text, random_weights(**shapes))


@pytest.mark.parametrize("kind", JOINS)
def test_symmetric_int8_join_builds_for_every_gpu(kind: str, tmp_path: Path) -> None:
    model = quantize(join(kind))
    # Turing has no float32 products; with the whole graph in half and int8 there are none
    built = build(half(model), tmp_path, SMS, precisions=("int8", "fp16"))
    sidecar = built.sidecar
    assert sidecar.compute_capabilities == SMS
    weighted = [x for x in sidecar.layers if x.type in ("CONVOLUTION", "MATRIX_MULTIPLY")]
    assert weighted
    assert {x.quantized for x in weighted} == {"int8"}
    assert sidecar.precisions["int8"] >= len(weighted)


@pytest.mark.parametrize("kind", JOINS)
def test_float_join_builds(kind: str, tmp_path: Path) -> None:
    sidecar = build(join(kind), tmp_path, SMS[1:]).sidecar
    assert set(sidecar.precisions) <= {"float32", "int64"}


@pytest.mark.parametrize("kind", ["concat", "residual add", "attention"])
def test_half_join_builds(kind: str, tmp_path: Path) -> None:
    sidecar = build(half(join(kind)), tmp_path, SMS, precisions=("fp16",)).sidecar
    assert sidecar.precisions["float16"] > 0
    assert "float32" not in sidecar.precisions


def test_joins_of_equal_scales_are_quantized_themselves(tmp_path: Path) -> None:
    layers = build(quantize(join("concat")), tmp_path).sidecar.layers
    assert next(x for x in layers if x.type == "CONCATENATION").quantized == "int8"
    assert next(x for x in layers if x.node == "fc").quantized == "int8"


# --- the proof of int8 ---

WIDE = model_of(
    "g (float[batch,1024] x) => (float[batch,1024] y) { a = MatMul(x, w1) b = Relu(a) [fc] y = MatMul(b, w2) }",
    random_weights(w1=(1024, 1024), w2=(1024, 1024)),
)


def test_engine_size_shows_the_precision(tmp_path: Path) -> None:
    models = {"fp32": WIDE, "fp16": half(WIDE), "int8": quantize(WIDE)}
    sizes = {n: build(m, tmp_path, (86, 89, 120), n).sidecar.size for n, m in models.items()}
    weights = 2 * 1024 * 1024
    for name, bytes_per_weight in (("fp32", 4), ("fp16", 2), ("int8", 1)):
        assert bytes_per_weight * weights <= sizes[name] <= bytes_per_weight * weights + 2**20, sizes


def test_weights_that_profiles_copy_do_not_pass_for_float(tmp_path: Path) -> None:
    """Batch 1 has kernels of its own, which read the weights in another layout: they are there twice."""
    ranges = [{"batch": SizeRange(n, n, n)} for n in (1, 8, 32)]
    sidecar = build(quantize(WIDE), tmp_path, ranges=ranges, precisions=("int8",)).sidecar
    assert len(sidecar.profiles) == 3
    assert 2 * sidecar.weights["quantized"] < sidecar.size < sidecar.weights["as_float"]


def test_float_engine_passed_off_as_int8_is_found(tmp_path: Path) -> None:
    """The size check alone, on a real float engine, with the weights of the int8 graph."""
    from edgemm.backends._trt.proof import check_size

    asked = request(quantize(WIDE), tmp_path)
    weights = read_onnx(asked.onnx).weights
    size = build(WIDE, tmp_path, name="float").sidecar.size
    with pytest.raises(BackendError, match="its weights are not quantized"):
        check_size(size, weights, 3, asked)
    sidecar = build_engine(asked).sidecar
    assert sidecar.size_limit == check_size(sidecar.size, weights, 3, asked)
    assert sidecar.size_limit is not None


def test_same_graph_same_bytes(tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        built = build(quantize(join("residual add")), tmp_path, SMS[1:])
        made.append((built.engine.read_bytes(), replace(built.sidecar, seconds=0.0)))
    assert made[0] == made[1]
    assert read_sidecar(built.engine) == built.sidecar
    assert built.sidecar.sha256 == hashlib.sha256(made[0][0]).hexdigest()
    assert [str(i) for i in built.sidecar.inputs] == [f"{n}[batch,32,8,8] float32" for n in "ab"]
    assert [str(o) for o in built.sidecar.outputs] == ["y[batch,32,8,8] float32"]
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx", "model.engine", "model.engine.json"}


# --- other precisions ---


FP8 = model_of(
    """g (float16[2,64] x) => (float16[2,64] y) {
        q = QuantizeLinear(x, s, z) d = DequantizeLinear(q, s, z)
        v = DequantizeLinear(w, s, z) [fc] y = MatMul(d, v)
    }""",
    {
        "s": np.float16(0.1),
        "z": np.zeros((), ml_dtypes.float8_e4m3fn),
        "w": np.ones((64, 64), ml_dtypes.float8_e4m3fn),
    },
    opset=21,
)


def test_fp8_builds_from_ada_on_and_says_so_below(tmp_path: Path) -> None:
    sidecar = build(FP8, tmp_path, (89, 120), precisions=("fp8",)).sidecar
    assert sidecar.precisions == {"float8_e4m3fn": 1}
    with pytest.raises(BackendError, match=r"cannot build the engine: .*fp8") as caught:
        build(FP8, tmp_path, (86,), name="old")
    assert "a GPU among the targets lacks this precision" in caught.value.hint


def test_block_quantized_int4_weights(tmp_path: Path) -> None:
    model = model_of(
        """g (float16[2,128] x) => (float16[2,64] y) {
            v = DequantizeLinear<axis=0, block_size=64>(w, s) [fc] y = MatMul(x, v)
        }""",
        {"s": np.full((2, 64), 0.1, np.float16), "w": np.ones((128, 64), ml_dtypes.int4)},
        opset=21,
    )
    sidecar = build(model, tmp_path, precisions=("int4",)).sidecar
    assert sidecar.weights["quantized"] == 64 * 64
    assert sidecar.weights["as_float"] == 2 * 128 * 64


# --- attention ---


def attention(arguments: str) -> ir.Model:
    heads = "float[batch,2,16,32]"
    text = f"g ({heads} q, {heads} k, {heads} v) => ({heads} y) {{ [att] y = Attention({arguments}) }}"
    return model_of(text, opset=23)


def test_float_attention_is_decomposed(tmp_path: Path) -> None:
    layers = build(attention("q, k, v"), tmp_path).sidecar.layers
    assert "ATTENTION_INPUT" in {x.type for x in layers}


def test_builder_that_crashes_is_an_error_like_others(tmp_path: Path) -> None:
    """TensorRT-RTX 1.7.1 ends with a segmentation fault when one tensor is query, key and value."""
    error = refusal(attention("q, q, q"), tmp_path)
    if load_module("tensorrt_rtx").__version__ == "1.7.1.116":
        assert "the process that builds the engine was ended by SIGSEGV" in str(error)
        assert str(error).startswith("stage 'fusion' (camera, lidar): ")
        assert {f.name for f in tmp_path.iterdir()} == {"model.onnx"}


# --- refusals ---


def q(body: str, inputs: str = "float[2,3] x", output: str = "float[2,3] y", constants: str = "") -> ir.Model:
    return model_of(f"g ({inputs}) => ({output}) <float s = {{0.1}}{constants}> {{ {body} }}")


MATMUL = model_of("g (float[2,64] x) => (float[2,64] y) { [fc] y = MatMul(x, w) }", random_weights(w=(64, 64)))

REFUSED: dict[str, tuple[ir.Model, str, str]] = {
    "zero point": (
        q("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", constants=", int8 z = {3}"),
        r"the QuantizeLinear node that gives 'q': Non-zero zero point is not supported",
        "symmetric",
    ),
    "uint8": (
        q("q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)", constants=", uint8 z = {128}"),
        r"the QuantizeLinear node that gives 'q': Non-zero zero point is not supported",
        "symmetric",
    ),
    "int32 bias": (
        q("b = DequantizeLinear(c, s) [sum] y = Add(x, b)", constants=", int32[3] c = {1, 2, 3}"),
        r"DequantizeLinear .*Int32",
        "leave the bias float",
    ),
    "scale": (
        model_of(
            "g (float[2,3] x) => (float[2,3] y) <float s = {0}, int8 z = {0}>"
            "{ [q] q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
        ),
        r"node 'q' \(QuantizeLinear\): .*[Ss]cale",
        "calibrate",
    ),
    "operator": (
        q("[odd] u = Unique<axis=0>(x) y = Relu(x)", output="float[2,3] y, float[n,3] u"),
        r"node 'odd' \(Unique\): operator Unique is not supported",
        "operators that TensorRT has",
    ),
    "plugin": (
        q("[odd] y = NonZero(x)", output="int64[2,n] y"),
        r"node 'odd' \(NonZero\): .*not found",
        "rewrite the layer",
    ),
    "string": (
        model_of("g (string[2] x) => (string[2] y) { y = Identity(x) }"),
        r"input 'x' \(string\)",
        "strings",
    ),
    "int16": (
        model_of("g (int16[2] x) => (int16[2] y) { y = Identity(x) }"),
        r"input 'x' \(int16\)",
        "numbers",
    ),
    "mixed types": (
        model_of("g (float16[2,64] x) => (float16[2,64] y) { [fc] y = MatMul(x, w) }", random_weights(w=(64, 64))),
        r"node 'fc' \(MatMul\): .*`A` is of type Half and `B` is of type Float",
        "Cast",
    ),
    "topk": (
        model_of(
            "g (float[2,5000] x) => (float[2,4000] y, int64[2,4000] i) <int64[1] k = {4000}>"
            "{ [top] y, i = TopK(x, k) }"
        ),
        r"node 'top' \(TopK\): .*K exceeds",
        "limit",
    ),
    "nms": (
        model_of(
            "g (float[1,6,4] b, float[1,1,6] s) => (int64[n,3] y) <int64 k = {3}, float t = {0.5}>"
            "{ [nms] y = NonMaxSuppression(b, s, k, t) }"
        ),
        r"node 'nms' \(NonMaxSuppression\): .*no runners that implement it",
        "lacks the operator",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_graph_names_the_node_and_the_cure(what: str, tmp_path: Path) -> None:
    model, message, hint = REFUSED[what]
    with pytest.raises(BackendError, match=message) as caught:
        build(model, tmp_path)
    text = str(caught.value)
    assert text.startswith("stage 'fusion' (camera, lidar): ")
    assert "cudaError" not in text
    assert "/_src/" not in text
    assert hint in caught.value.hint
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx"}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"capabilities": ()}, "builds for compute capabilities that are named, and none is"),
        ({"capabilities": (87,)}, "no code for compute capability 87"),
        ({"capabilities": (90,)}, "no code for compute capability 90"),
        ({"capabilities": (110,)}, "no code for compute capability 110"),
        ({"capabilities": (75,)}, r"node 'fc' \(MatMul\): .*FP32 GEMM is not supported"),
        ({"options": BuildOptions(version_compatible=True)}, "comes without the lean runtime"),
        ({"options": BuildOptions(hardware_compatibility="ampere-plus")}, "ignores it"),
        ({"options": BuildOptions(dla_core=0)}, "DLA core 0 was asked for"),
        ({"options": BuildOptions(workspace=1)}, "workspace"),
        ({"precisions": ("fp16",)}, "the plan has fp16, and no tensor of the network is float16"),
        ({"precisions": ("int8",)}, "the plan has int8, and no tensor of the network is int8"),
    ],
)
def test_refused_option(more: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = MATMUL
    if "options" in more and more["options"].workspace is not None:
        model = model_of(
            "g (float[1,3,64,64] x) => (float[1,8,64,64] y) { [c] y = Conv<pads=[1,1,1,1]>(x, w) }",
            random_weights(w=(8, 3, 3, 3)),
        )
    with pytest.raises(BackendError, match=message):
        build(model, tmp_path, **more)
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx"}


@pytest.mark.parametrize("option", ["refit", "strip_weights"])
def test_refit_builds_where_there_is_a_gpu_only(option: str, tmp_path: Path) -> None:
    error = refusal(MATMUL, tmp_path, options=BuildOptions(**{option: True}))
    if error is not None:
        assert "refit needs a GPU to build on" in error.hint
        assert {f.name for f in tmp_path.iterdir()} == {"model.onnx"}


def test_inconsistent_ranges_that_tensorrt_takes_are_refused(tmp_path: Path) -> None:
    shapes = {"a": ShapeRange((1, 64), (2, 64), (4, 64)), "b": ShapeRange((1, 64), (2, 64), (8, 64))}
    with pytest.raises(RecipeError, match=r"but input 'a' has 1\.\.2\.\.4 for 'batch'"):
        build(join("add"), tmp_path, profiles=(OptimizationProfile(shapes),))


def test_values_of_a_shape_input(tmp_path: Path) -> None:
    model = model_of("g (float[2,50] x, int64[1] k) => (float[2,n] y, int64[2,n] i) { [top] y, i = TopK(x, k) }")
    with pytest.raises(BackendError, match="input 'k' is a shape inside the network"):
        build(model, tmp_path, profiles=())
    profile = OptimizationProfile({}, {"k": ShapeRange((1,), (3,), (10,))})
    sidecar = build(model, tmp_path, profiles=(profile,)).sidecar
    assert sidecar.profiles == (profile,)
    assert [str(o) for o in sidecar.outputs] == ["y[2,n] float32", "i[2,n] int64"]


# --- supervision ---


def test_progress_timeout_and_cancel(tmp_path: Path) -> None:
    seen: list[Progress] = []
    asked = request(quantize(WIDE), tmp_path)
    build_engine(asked, Supervision(progress=seen.append))
    assert len({p.phase for p in seen}) > 4  # TensorRT's own phases, too
    asked.engine.unlink()
    (tmp_path / "model.engine.json").unlink()
    with pytest.raises(BackendError, match=r"took longer than 0.05 s"):
        build_engine(asked, Supervision(timeout=0.05))
    cancel = threading.Event()
    with pytest.raises(BackendError, match="the build was cancelled"):
        build_engine(asked, Supervision(progress=lambda p: cancel.set(), cancelled=cancel.is_set))
    assert {f.name for f in tmp_path.iterdir()} == {"model.onnx"}


def test_engines_are_built_in_parallel(tmp_path: Path) -> None:
    """Each process has its own logger: the messages of one build are not those of another."""
    errors: dict[str, str] = {}

    def run(what: str) -> None:
        (tmp_path / what).mkdir()
        try:
            build(REFUSED[what][0], tmp_path / what)
        except BackendError as error:
            errors[what] = str(error)

    threads = [threading.Thread(target=run, args=(what,)) for what in ("topk", "nms", "operator")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert "TopK" in errors["topk"]
    assert "NonMaxSuppression" in errors["nms"]
    assert "Unique" in errors["operator"]
