"""The whole builder path against what nine TensorRT versions declare: unknown members and wrong arguments fail."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from trt_fakes import VERSIONS, Machine, bind, fake_module, make
from trt_graphs import half, model_of, quantize, random_weights, write

from edgemm.backends._trt.build import build_plan
from edgemm.backends._trt.onnx_file import Weights
from edgemm.backends._trt.proof import size_limit
from edgemm.backends.tensorrt import (
    BuildOptions,
    BuildRequest,
    OptimizationProfile,
    Sidecar,
    SizeRange,
    make_profiles,
)
from edgemm.errors import BackendError, MissingExtraError, RecipeError
from edgemm.runtime._trt.module import has, is_rtx, load_module
from edgemm.tensors import ShapeRange, TensorSpec

CLASSIC = tuple(v for v in VERSIONS if "rtx" not in v)
RTX = tuple(v for v in VERSIONS if "rtx" in v)
OLDEST = "tensorrt-8.6.1"

ENCODER = model_of(
    """g (float[batch,3,8,8] image, float[batch,8] audio)
    => (float[batch,16,8,8] features, float[batch,4] scores) {
        [conv1] c = Conv<pads=[1,1,1,1]>(image, w1)
        [relu1] features = Relu(c)
        [fc] scores = MatMul(audio, w2)
    }""",
    random_weights(w1=(16, 3, 3, 3), w2=(8, 4)),
)
INPUTS = (TensorSpec("image", "float32", ("batch", 3, 8, 8)), TensorSpec("audio", "float32", ("batch", 8)))
PROFILES = make_profiles(INPUTS, [{"batch": SizeRange(1, 2, 4)}, {"batch": SizeRange(8, 8, 8)}])
STATIC = model_of("g (float[2,8] x) => (float[2,4] y) { [fc] y = MatMul(x, w) }", random_weights(w=(8, 4)))


def request(version: str, onnx: Path, **more: Any) -> BuildRequest:
    asked = BuildRequest(
        onnx,
        onnx.with_suffix(".engine"),
        version.rpartition("-")[0],
        stage="sensors",
        modalities=("camera", "microphone"),
        compute_capabilities=(86, 120) if version in RTX else (),
        profiles=PROFILES,
    )
    return replace(asked, **more)


def build(trt: Any, version: str, folder: Path, model: Any = ENCODER, **more: Any) -> tuple[Sidecar, Machine]:
    onnx = write(model, folder)
    sidecar, _ = build_plan(trt, request(version, onnx, **more), folder / "out.engine")
    return sidecar, trt.machine


def build_static(trt: Any, version: str, folder: Path, **more: Any) -> tuple[Sidecar, Machine]:
    return build(trt, version, folder, more.pop("model", STATIC), profiles=(), **more)


# --- the fakes themselves ---


def test_nine_versions_are_there() -> None:
    versions = ["8.6.1", "10.3.0", "10.7.0", "10.13.3", "10.16.1", "11.0.0", "11.4.0"]
    assert {f"tensorrt-{v}" for v in versions} | {"tensorrt_rtx-1.4.0", "tensorrt_rtx-1.7.1"} == set(VERSIONS)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_fake_has_what_its_version_has_and_nothing_else(version: str) -> None:
    trt = fake_module(version)
    config = make(trt, "IBuilderConfig")
    assert has(trt, "BuilderFlag.FP8") == (
        version not in ("tensorrt-11.0.0", "tensorrt-11.4.0", "tensorrt_rtx-1.7.1")
    )
    assert has(trt, "IProgressMonitor") == (version != OLDEST)
    assert is_rtx(trt) == (version in RTX)
    with pytest.raises(AttributeError, match="no attribute 'max_batch'"):
        config.max_batch = 3
    with pytest.raises(AttributeError):
        config.max_batch  # noqa: B018
    with pytest.raises(TypeError, match="set_flag"):
        config.set_flag()
    with pytest.raises(TypeError, match="set_flag"):
        config.set_flag(flags=trt.BuilderFlag.TF32)
    with pytest.raises(TypeError, match="No constructor"):
        trt.IBuilderConfig()


def test_signatures_bind_as_python_does() -> None:
    assert bind("f", [["a", "b?"]], (1,), {"b": 2}) == (1, 2)
    assert bind("f", [["a"], ["a", "b"]], (1, 2), {}) == (1, 2)
    for args, kwargs in (((), {}), ((1, 2, 3), {}), ((1,), {"a": 1}), ((1,), {"c": 1})):
        with pytest.raises(TypeError):
            bind("f", [["a", "b?"]], args, kwargs)


# --- a build ---


@pytest.mark.parametrize("version", VERSIONS)
def test_float_graph(version: str, tmp_path: Path) -> None:
    trt = fake_module(version)
    sidecar, machine = build(trt, version, tmp_path)
    engine = (tmp_path / "out.engine").read_bytes()
    assert (sidecar.flavour, sidecar.version) == (version.rpartition("-")[0], trt.__version__)
    assert (sidecar.stage, sidecar.modalities) == ("sensors", ("camera", "microphone"))
    assert sidecar.inputs == INPUTS
    assert [str(o) for o in sidecar.outputs] == ["features[batch,16,8,8] float32", "scores[batch,4] float32"]
    assert sidecar.size == len(engine)
    assert sidecar.precisions == {"float32": 3}
    assert {layer.node for layer in sidecar.layers} == {"", "conv1", "relu1", "fc"}
    assert sidecar.typing == ("weak" if version == OLDEST else "strong")
    flag = "EXPLICIT_BATCH" if version == OLDEST else "STRONGLY_TYPED"
    assert machine.called("Builder.create_network") == [
        (1 << int(getattr(trt.NetworkDefinitionCreationFlag, flag)),)
    ]
    assert machine.called("IBuilderConfig.set_flag") == []
    assert len(machine.called("init_libnvinfer_plugins")) == (version in CLASSIC)


@pytest.mark.parametrize("version", VERSIONS)
def test_profiles_reach_the_builder(version: str, tmp_path: Path) -> None:
    sidecar, machine = build(fake_module(version), version, tmp_path)
    shapes = machine.called("IOptimizationProfile.set_shape")
    assert ("image", (1, 3, 8, 8), (2, 3, 8, 8), (4, 3, 8, 8)) in shapes
    assert ("audio", (8, 8), (8, 8), (8, 8)) in shapes
    assert len(shapes) == 4
    assert len(machine.called("IBuilderConfig.add_optimization_profile")) == 2
    assert sidecar.profiles == PROFILES


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_graph(version: str, tmp_path: Path) -> None:
    sidecar, machine = build(fake_module(version), version, tmp_path, quantize(ENCODER), precisions=("int8",))
    assert sidecar.precisions == {"int8": 2, "float32": 1}
    assert {layer.node: layer.quantized for layer in sidecar.layers if layer.quantized} == {
        "conv1": "int8",
        "fc": "int8",
    }
    assert sidecar.weights["quantized"] == 16 * 27 + 8 * 4
    assert sidecar.weights["as_float"] == 4 * (16 * 27 + 8 * 4)
    flags = [flag.name for (flag,) in machine.called("IBuilderConfig.set_flag")]
    assert flags == (["INT8"] if version == OLDEST else [])


@pytest.mark.parametrize("version", VERSIONS)
def test_half_graph(version: str, tmp_path: Path) -> None:
    model = half(ENCODER)
    sidecar, machine = build(fake_module(version), version, tmp_path, model, precisions=("fp16",))
    assert sidecar.precisions == {"float16": 3}
    flags = [flag.name for (flag,) in machine.called("IBuilderConfig.set_flag")]
    assert flags == (["FP16", "OBEY_PRECISION_CONSTRAINTS"] if version == OLDEST else [])


def test_weak_typing_holds_float_layers_of_a_half_graph(tmp_path: Path) -> None:
    model = model_of(
        """g (float[2,8] x, float16[2,8] h) => (float[2,8] y, float16[2,8] k) {
            [keep] y = Relu(x)  [free] k = Relu(h)
        }"""
    )
    trt = fake_module(OLDEST)
    _, machine = build_static(trt, OLDEST, tmp_path, model=model)
    assert machine.called("ILayer.precision") == [(trt.DataType.FLOAT,)]
    assert machine.called("ILayer.set_output_type") == [(0, trt.DataType.FLOAT)]


@pytest.mark.parametrize("version", VERSIONS)
def test_equal_builds_give_equal_sidecars_without_enum_numbers(version: str, tmp_path: Path) -> None:
    made = []
    for _ in range(2):
        sidecar, _ = build(fake_module(version), version, tmp_path, quantize(ENCODER))
        made.append(json.dumps(replace(sidecar, seconds=0.0).to_json(), sort_keys=True))
    assert made[0] == made[1]
    assert Sidecar.from_json(json.loads(made[0])) == replace(sidecar, seconds=0.0)
    assert "Member" not in made[0]


# --- options ---

FLAGS = {
    "sparse_weights": "SPARSE_WEIGHTS",
    "version_compatible": "VERSION_COMPATIBLE",
    "refit": "REFIT",
    "strip_weights": "STRIP_PLAN",
    "weight_streaming": "WEIGHT_STREAMING",
}
LACKING = {
    (OLDEST, "strip_weights"),
    (OLDEST, "weight_streaming"),
    *((v, "version_compatible") for v in RTX),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("option", FLAGS)
def test_option_is_set_or_refused(version: str, option: str, tmp_path: Path) -> None:
    trt = fake_module(version)
    options = BuildOptions(**{option: True})
    if (version, option) in LACKING:
        with pytest.raises(
            BackendError, match=r"stage 'sensors' \(camera, microphone\): .* was asked for"
        ) as caught:
            build_static(trt, version, tmp_path, options=options)
        assert "leave it out" in caught.value.hint
    else:
        sidecar, machine = build_static(trt, version, tmp_path, options=options)
        assert [f.name for (f,) in machine.called("IBuilderConfig.set_flag")] == [FLAGS[option]]
        assert sidecar.options[option] is True


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("level", ["ampere-plus", "same-compute-capability"])
def test_hardware_compatibility(version: str, level: str, tmp_path: Path) -> None:
    trt = fake_module(version)
    options = BuildOptions(hardware_compatibility=level)
    old = version in (OLDEST, "tensorrt-10.3.0", "tensorrt-10.7.0") and level != "ampere-plus"
    if version in RTX or old:
        with pytest.raises(
            BackendError, match="ignores it" if version in RTX else "has no SAME_COMPUTE_CAPABILITY"
        ):
            build_static(trt, version, tmp_path, options=options)
    else:
        _, machine = build_static(trt, version, tmp_path, options=options)
        ((value,),) = machine.called("IBuilderConfig.hardware_compatibility_level")
        assert value.name == level.upper().replace("-", "_")


def test_unknown_hardware_compatibility(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="no hardware compatibility 'all'"):
        build_static(fake_module(OLDEST), OLDEST, tmp_path, options=BuildOptions(hardware_compatibility="all"))


@pytest.mark.parametrize("version", VERSIONS)
def test_plain_options(version: str, tmp_path: Path) -> None:
    trt = fake_module(version)
    options = BuildOptions(workspace=1 << 28, optimization_level=5, tf32=False)
    _, machine = build_static(trt, version, tmp_path, options=options)
    assert machine.called("IBuilderConfig.set_memory_pool_limit") == [(trt.MemoryPoolType.WORKSPACE, 1 << 28)]
    assert machine.called("IBuilderConfig.builder_optimization_level") == [(5,)]
    assert machine.called("IBuilderConfig.clear_flag") == [(trt.BuilderFlag.TF32,)]
    assert machine.called("IBuilderConfig.profiling_verbosity") == [(trt.ProfilingVerbosity.DETAILED,)]
    with pytest.raises(BackendError, match="optimization level 6, expected 0 to 5"):
        build_static(trt, version, tmp_path, options=BuildOptions(optimization_level=6))


@pytest.mark.parametrize("version", CLASSIC)
def test_dla(version: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"DLA core 0 was asked for and .* finds none"):
        build_static(fake_module(version), version, tmp_path, options=BuildOptions(dla_core=0))
    machine = Machine(dla_cores=2, dla_layers=("MATRIX_MULTIPLY",))
    with pytest.raises(BackendError, match=r"DLA core 2 was asked for and .* finds 2"):
        build_static(fake_module(version, machine), version, tmp_path, options=BuildOptions(dla_core=2))
    trt = fake_module(version, machine)
    _, machine = build_static(trt, version, tmp_path, options=BuildOptions(dla_core=1))
    assert machine.called("IBuilderConfig.default_device_type") == [(trt.DeviceType.DLA,)]
    assert machine.called("IBuilderConfig.DLA_core") == [(1,)]
    assert machine.called("IBuilderConfig.set_flag") == []


@pytest.mark.parametrize("version", CLASSIC)
def test_dla_names_the_layer_that_does_not_run_there(version: str, tmp_path: Path) -> None:
    machine = Machine(dla_cores=2)
    with pytest.raises(BackendError, match=r"layer 'fc' \(MATRIX_MULTIPLY\) does not run on a DLA"):
        build_static(fake_module(version, machine), version, tmp_path, options=BuildOptions(dla_core=0))
    trt = fake_module(version, Machine(dla_cores=2))
    _, machine = build_static(trt, version, tmp_path, options=BuildOptions(dla_core=0, gpu_fallback=True))
    assert machine.called("IBuilderConfig.set_flag") == [(trt.BuilderFlag.GPU_FALLBACK,)]


def test_dla_takes_fixed_sizes_only(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"profile 0: input 'image' .* a DLA engine has fixed sizes"):
        build(fake_module(OLDEST, Machine(dla_cores=1)), OLDEST, tmp_path, options=BuildOptions(dla_core=0))


@pytest.mark.parametrize("version", RTX)
def test_rtx_has_no_dla(version: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="finds none on this machine"):
        build_static(fake_module(version), version, tmp_path, options=BuildOptions(dla_core=0, gpu_fallback=True))


# --- targets ---


@pytest.mark.parametrize("version", RTX)
def test_compute_capabilities_are_always_set(version: str, tmp_path: Path) -> None:
    trt = fake_module(version)
    sidecar, machine = build(trt, version, tmp_path)
    assert machine.called("IBuilderConfig.num_compute_capabilities") == [(2,)]
    wanted = [(trt.ComputeCapability.SM86, 0), (trt.ComputeCapability.SM120, 1)]
    assert machine.called("IBuilderConfig.set_compute_capability") == wanted
    assert sidecar.compute_capabilities == (86, 120)
    for asked, message in (((), "none is"), ((87,), "no code for compute capability 87"), ((86, 86), "one twice")):
        with pytest.raises(BackendError, match=message):
            build(trt, version, tmp_path, compute_capabilities=asked)
    with pytest.raises(BackendError, match="does not take compute capability 86"):
        build(fake_module(version, Machine(capability_taken=False)), version, tmp_path)


@pytest.mark.parametrize("version", CLASSIC)
def test_classic_builds_for_the_gpu_at_hand(version: str, tmp_path: Path) -> None:
    sidecar, _ = build(
        fake_module(version), version, tmp_path, compute_capabilities=(87,), device={"name": "Orin", "sms": 16}
    )
    assert sidecar.compute_capabilities == (87,)
    assert sidecar.device == {"name": "Orin", "sms": 16}
    with pytest.raises(
        BackendError, match=r"compute capabilities 86, 87; TensorRT .* builds for the GPU at hand only"
    ):
        build(fake_module(version), version, tmp_path, compute_capabilities=(86, 87))


@pytest.mark.parametrize("version", CLASSIC)
def test_no_driver(version: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="does not start: CUDA initialization failure") as caught:
        build(fake_module(version, Machine(starts=False)), version, tmp_path)
    assert "nvidia-smi" in caught.value.hint


# --- timing cache, progress ---


@pytest.mark.parametrize("version", VERSIONS)
def test_timing_cache_is_kept_on_classic_only(version: str, tmp_path: Path) -> None:
    cache = tmp_path / "timing.cache"
    build(fake_module(version), version, tmp_path, timing_cache=cache)
    if version in RTX:
        assert not cache.exists()
        return
    assert cache.read_bytes() == b"timed;"
    build(fake_module(version), version, tmp_path, timing_cache=cache)
    assert cache.read_bytes() == b"timed;timed;"
    build(fake_module(version, Machine(timing_fits=False)), version, tmp_path, timing_cache=cache)
    assert cache.read_bytes() == b"timed;"
    assert [f.name for f in tmp_path.iterdir() if f.name.startswith(".")] == []


def test_engine_is_kept_when_its_timings_are_not(tmp_path: Path) -> None:
    cache = tmp_path / "nowhere" / "timing.cache"
    asked = request(OLDEST, write(ENCODER, tmp_path), timing_cache=cache)
    sidecar, warnings = build_plan(fake_module(OLDEST), asked, tmp_path / "e")
    assert warnings == ("timing cache 'timing.cache' is not kept: No such file or directory",)
    assert (tmp_path / "e").stat().st_size == sidecar.size


@pytest.mark.parametrize("version", VERSIONS)
def test_progress(version: str, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    asked = request(version, write(ENCODER, tmp_path))
    build_plan(fake_module(version), asked, tmp_path / "e", lambda *step: seen.append(step))
    assert [phase for phase, _, _ in seen if phase != "Building"] == ["read", "parse", "build", "write"]
    steps = [(step, steps) for phase, step, steps in seen if phase == "Building"]
    assert steps == ([] if version == OLDEST else [(0, 3), (1, 3), (2, 3), (3, 3), (3, 3)])


# --- refusals ---

PROFILE = ShapeRange((1, 8), (2, 8), (4, 8))


@pytest.mark.parametrize("version", VERSIONS)
def test_parser_error_names_the_node_by_its_index(version: str, tmp_path: Path) -> None:
    model = model_of("g (float[2,8] x) => (float[2,8] y) { [first] t = Relu(x) y = Neg(t) }")
    desc = "Assertion failed: a.b(c): Non-zero zero point is not supported\nfoo (cudaError 35: CUDA driver ...)"
    trt = fake_module(version, Machine(parser_errors=({"node": 1, "desc": desc},)))
    with pytest.raises(BackendError) as caught:
        build_static(trt, version, tmp_path, model=model)
    text = str(caught.value)
    assert "the Neg node that gives 'y': Non-zero zero point is not supported." in text
    assert text.startswith("stage 'sensors' (camera, microphone): TensorRT")
    assert "cudaError" not in text
    assert "symmetric" in caught.value.hint
    named = replace_error(trt, {"node": 0, "desc": "no"})
    with pytest.raises(BackendError, match=r"node 'first' \(Relu\): no\."):
        build_static(named, version, tmp_path, model=model)


def replace_error(trt: Any, *errors: dict[str, Any]) -> Any:
    trt.machine.parser_errors = errors
    return trt


@pytest.mark.parametrize("version", [v for v in VERSIONS if v != OLDEST])
def test_parser_error_fields_of_newer_versions(version: str, tmp_path: Path) -> None:
    trt = fake_module(version)
    code = type("Code", (), {"name": "UNSUPPORTED_NODE"})()
    errors: list[dict[str, Any]] = [
        {"node": 4, "node_name": "inner", "node_operator": "Unique", "desc": "false", "code": code},
        {"node": 0, "node_operator": "Scan", "desc": "bad", "local_function_stack": ["callsite (Bad)"]},
    ]
    with pytest.raises(BackendError) as caught:
        build_static(replace_error(trt, *errors), version, tmp_path)
    text = str(caught.value)
    assert "node 'inner' (Unique): operator Unique is not supported (UNSUPPORTED_NODE) (1 more: " in text
    assert "a Scan node in function callsite (Bad): bad" in text


@pytest.mark.parametrize("version", VERSIONS)
def test_parser_that_gives_no_reason(version: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot read the graph: it gave no reason"):
        build_static(fake_module(version, Machine(parser_refuses=True)), version, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_builder_failure_is_the_first_error_with_its_node(version: str, tmp_path: Path) -> None:
    log = (
        ("WARNING", "unused input"),
        ("ERROR", "[x.cpp::f::1] Error Code 1: Cuda Runtime (CUDA driver version is insufficient ...)"),
        (
            "ERROR",
            "IBuilder::buildNetwork: Error Code 4: API Usage Error (IMatrix fc: too wide In a at /b.cpp:1)",
        ),
        ("ERROR", "something that follows from it"),
    )
    with pytest.raises(BackendError) as caught:
        build_static(fake_module(version, Machine(build_log=log)), version, tmp_path)
    assert "cannot build the engine: node 'fc' (MatMul): IMatrix fc: too wide." in str(caught.value)
    with pytest.raises(BackendError, match="cannot build the engine: it gave no reason"):
        build_static(fake_module(version, Machine(build_log=(("ERROR", "cudaError 35"),))), version, tmp_path)


@pytest.mark.parametrize("version", VERSIONS)
def test_warnings_come_back(version: str, tmp_path: Path) -> None:
    trt = fake_module(
        version, Machine(build_log=(("WARNING", "Unused input: mask"), ("WARNING", "Unused input: mask")))
    )
    asked = request(version, write(ENCODER, tmp_path))
    assert build_plan(trt, asked, tmp_path / "e")[1] == ("Unused input: mask",)


@pytest.mark.parametrize("version", VERSIONS)
def test_empty_graph(version: str, tmp_path: Path) -> None:
    model = model_of("g (float[2,8] x) => () { y = Relu(x) }")
    with pytest.raises(BackendError, match="the graph has no outputs"):
        build_static(fake_module(version), version, tmp_path, model=model)


@pytest.mark.parametrize("version", VERSIONS)
def test_precision_must_be_in_the_graph(version: str, tmp_path: Path) -> None:
    for precision in ("fp16", "int8"):
        with pytest.raises(BackendError, match=f"the plan has {precision}, and no tensor") as caught:
            build_static(fake_module(version), version, tmp_path, precisions=(precision,))
        assert "precision is in the graph" in caught.value.hint
    with pytest.raises(BackendError, match="no precision 'fp12'"):
        build_static(fake_module(version), version, tmp_path, precisions=("fp12",))


@pytest.mark.parametrize("version", VERSIONS)
def test_refused_profile(version: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"refuses a profile: image \[1, 3, 8, 8\] to"):
        build(fake_module(version, Machine(profile_index=-1)), version, tmp_path)
    with pytest.raises(RecipeError, match="'batch' of input 'image' are dynamic and have no range"):
        build(fake_module(version), version, tmp_path, profiles=())


@pytest.mark.parametrize("version", VERSIONS)
def test_values_of_shape_inputs(version: str, tmp_path: Path) -> None:
    trt = fake_module(version, Machine(shape_inputs=("k",)))
    model = model_of("g (float[2,8] x, int64[1] k) => (float[2,n] y, int64[2,n] i) { y, i = TopK(x, k) }")
    with pytest.raises(BackendError, match="input 'k' is a shape inside the network"):
        build_static(trt, version, tmp_path, model=model)
    profile = OptimizationProfile({}, {"k": ShapeRange((1,), (2,), (4,))})
    sidecar, machine = build(trt, version, tmp_path, model, profiles=(profile,))
    assert machine.called("IOptimizationProfile.set_shape_input") == [("k", (1,), (2,), (4,))]
    assert sidecar.inputs[1].dtype == ("int32" if version == OLDEST else "int64")


@pytest.mark.parametrize("version", VERSIONS)
def test_attention_may_be_decomposed_where_it_is_a_layer(version: str, tmp_path: Path) -> None:
    heads = "float[1,2,4,8]"
    model = model_of(
        f"g ({heads} q, {heads} k, {heads} v) => ({heads} y) {{ [a] y = Attention(q, k, v) }}", opset=23
    )
    trt = fake_module(version)
    _, machine = build_static(trt, version, tmp_path, model=model)
    expected = [(True,)] if has(trt, "IAttention") else []
    assert machine.called("IAttention.decomposable") == expected
    assert has(trt, "IAttention") == (
        version not in (OLDEST, *(f"tensorrt-10.{v}" for v in ("3.0", "7.0", "13.3")))
    )


# --- the proof of int8 ---

LARGE = model_of(
    "g (float[2,2048] x) => (float[2,1024] y) { [fc] y = MatMul(x, w) }", random_weights(w=(2048, 1024))
)


@pytest.mark.parametrize("version", VERSIONS)
def test_int8_weights_show_in_the_size(version: str, tmp_path: Path) -> None:
    model = quantize(LARGE)
    sidecar, _ = build_static(fake_module(version), version, tmp_path, model=model, precisions=("int8",))
    assert sidecar.size_limit is not None
    assert sidecar.size < sidecar.size_limit
    trt = fake_module(version, Machine(stores_float=True))
    with pytest.raises(BackendError, match="its weights are not quantized"):
        build_static(trt, version, tmp_path, model=model, precisions=("int8",))


@pytest.mark.parametrize("version", VERSIONS)
def test_parser_that_takes_quantization_out(version: str, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="the graph has 4 DequantizeLinear nodes, the network 0"):
        build(fake_module(version, Machine(drops_quantization=True)), version, tmp_path, quantize(ENCODER))


# --- the module ---


def test_module_that_does_not_import(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    file = tmp_path / "tensorrt.py"
    for line, hint in (
        ("raise ImportError('libnvinfer.so.10: cannot open shared object file')", "LD_LIBRARY_PATH"),
        ("raise OSError('libnvinfer.so.8: cannot open shared object file')", "LD_LIBRARY_PATH"),
        ("raise ModuleNotFoundError(\"No module named 'tensorrt_bindings'\")", "--system-site-packages"),
    ):
        file.write_text(line)
        with pytest.raises(MissingExtraError, match=r"'tensorrt' is needed .* does not import") as caught:
            load_module("tensorrt")
        assert hint in caught.value.hint


def test_empty_namespace_package_is_no_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", ModuleType("tensorrt"))
    with pytest.raises(MissingExtraError, match="an empty folder") as caught:
        load_module("tensorrt")
    assert "tensorrt-stubs" in caught.value.hint


def test_unknown_module() -> None:
    with pytest.raises(BackendError, match="no TensorRT module 'tensorrt_rt'") as caught:
        load_module("tensorrt_rt")
    assert "tensorrt_rtx" in caught.value.hint or "'tensorrt'" in caught.value.hint


M = 2**20


@pytest.mark.parametrize(
    ("weights", "layers", "profiles", "limit"),
    [
        (Weights(2 * M, 8 * M, 0), 0, 1, (3 * M + 8 * M) // 2),
        (Weights(2 * M, 8 * M, 4 * M), 16, 0, (8 * M + 12 * M) // 2),
        (Weights(2 * M, 8 * M, 0), 0, 3, None),  # three copies of int8 are as large as one of float
        (Weights(20 * M, 80 * M, 0), 0, 3, (63 * M + 80 * M) // 2),
        (Weights(2 * M, 8 * M, 0), 64, 1, None),  # so many kernels weigh as much as the weights
        (Weights(432, 1728, 0), 1, 1, None),
        (Weights(0, 0, 100 * M), 1, 1, None),
    ],
)
def test_limit_lies_between_quantized_and_float(
    weights: Weights, layers: int, profiles: int, limit: int | None
) -> None:
    assert size_limit(weights, layers, profiles) == limit
