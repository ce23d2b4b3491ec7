"""What the lint says of a graph, the real TensorRT-RTX says too: its parser and builder, which need no GPU."""

from __future__ import annotations

from pathlib import Path

import onnx_ir as ir
import pytest
from lint_models import ACCEPTS, AS_IT_SHOULD_BE, BUILDER, CASES, MATMUL_INT8, MATMUL_WEIGHTS, Case
from real_builder import RealBuilder

from edgemm.backends.targets import RTX_SMS, find_target
from edgemm.lint import lint
from edgemm.lint.operator_data import IMPORTED

trt = pytest.importorskip("tensorrt_rtx", reason="tensorrt_rtx is not installed: pip install 'edgemm[rtx]'")

FEWEST = 0.98
"""Share of what the builder refuses in ONNX's own node tests that the lint must foresee."""


DYNAMIC = """g (float[batch,4] a, float[batch,4] b) => (float[batch,4] y, float[batch,4] z) {
    y = Relu(a)  z = Neg(b) }"""


@pytest.fixture(scope="module")
def builder() -> RealBuilder:
    return RealBuilder(trt)


@pytest.mark.parametrize("case", [*CASES, *AS_IT_SHOULD_BE], ids=lambda c: c.name)
def test_verdict(case: Case, builder: RealBuilder) -> None:
    data = case.proto().SerializeToString()
    for target in case.targets:
        sm = find_target(target).sm
        assert sm is not None
        assert builder.verdict(data, sm, case.shapes) == case.verdict, target


@pytest.mark.parametrize("case", [c for c in CASES if c.clean != ("cpu",)], ids=lambda c: c.name)
def test_other_targets_build_it(case: Case, builder: RealBuilder) -> None:
    for target in case.clean:
        sm = find_target(target).sm
        if sm in RTX_SMS:
            assert builder.verdict(case.proto().SerializeToString(), sm, case.shapes) == ACCEPTS, target


def test_uint8_becomes_int8_without_a_word(builder: RealBuilder) -> None:
    case = next(c for c in CASES if c.name == "uint8")
    assert builder.output_types(case.proto().SerializeToString())["q"] == "INT8"


def test_double_becomes_float_without_a_word(builder: RealBuilder) -> None:
    case = next(c for c in CASES if c.name == "cast to double")
    assert builder.output_types(case.proto().SerializeToString())["e"] == "FLOAT"


def test_fp8_builds_when_the_sm_is_not_named(builder: RealBuilder) -> None:
    case = next(c for c in CASES if c.name == "fp8")
    made, network = builder.parse(case.proto().SerializeToString())
    assert made.build_serialized_network(network, made.create_builder_config()) is not None


def test_one_symbol_with_two_ranges_is_taken(builder: RealBuilder) -> None:
    case = Case("ranges", DYNAMIC, None)
    given = {"a": ((1, 4), (2, 4), (8, 4)), "b": ((1, 4), (2, 4), (4, 4))}
    assert builder.verdict(case.proto().SerializeToString(), 86, given) == ACCEPTS


@pytest.mark.parametrize("given", [{}, {"a": ((1, 4), (2, 4), (8, 4))}, {"a": ((8, 4), (2, 4), (8, 4))}])
def test_ranges_that_are_missing_are_not(builder: RealBuilder, given: dict[str, object]) -> None:
    assert builder.verdict(Case("ranges", DYNAMIC, None).proto().SerializeToString(), 86, given) == BUILDER


def test_the_table_of_operators_is_the_parser_s(builder: RealBuilder) -> None:
    import onnx

    made = trt.Builder(builder.logger)
    parser = trt.OnnxParser(made.create_network(0), builder.logger)
    names = {s.name for s in onnx.defs.get_all_schemas_with_history() if s.domain == ""}
    assert {n for n in names if parser.supports_operator(n)} == IMPORTED & names


def test_what_is_right_holds_int8_weights(builder: RealBuilder) -> None:
    """Scales along output channels give an int8 layer; along another axis the weight is expanded to float."""
    plans = {}
    for axis in ("1", "0"):
        text = MATMUL_INT8 if axis == "1" else MATMUL_INT8.replace("axis = 1", "axis = 0")
        made, network = builder.parse(Case("axis", text, None, weights=MATMUL_WEIGHTS).proto().SerializeToString())
        config = made.create_builder_config()
        config.num_compute_capabilities = 1
        config.set_compute_capability(trt.ComputeCapability.SM86, 0)
        plans[axis] = bytes(made.build_serialized_network(network, config))
    wide = b'name="v_preCast.1"'  # the dequantized weight as a tensor of its own
    assert wide in plans["0"]
    assert wide not in plans["1"]


@pytest.mark.slow
def test_graphs_that_torch_exported_long_ago(builder: RealBuilder) -> None:
    """The whole models among ONNX's tests, of opset 6 to 9."""
    import onnx

    folder = Path(onnx.__file__).parent / "backend" / "test" / "data"
    models = [onnx.load(p) for p in sorted(folder.glob("pytorch-*/*/model.onnx"))]
    target, told = find_target("rtx-ampere"), []
    for model in models:
        errors = [f for f in lint(ir.from_proto(model), target) if f.severity == "error"]
        told.append((bool(errors), builder.verdict(model.SerializeToString(), 86) == ACCEPTS))
    assert len(told) > 50
    assert {(True, True), (False, False)} & set(told) == set()


FIXTURES = {"riann": (1, 2, 4), "voice_filter": (1, 2, 4), "wake_mel": (4_000, 16_000, 32_000)}
FIXTURES |= {"wake_embedding": (1, 2, 4), "wake_word": (1, 2, 4)}
"""Published ONNX files -> smallest, usual and largest size of every open dimension."""


@pytest.mark.slow
@pytest.mark.parametrize("name", FIXTURES)
def test_published_models(name: str, builder: RealBuilder) -> None:
    from benchmarks.fixtures import build

    path = build(name).model
    model = ir.load(path)
    shapes = {
        v.name: [tuple(d if isinstance(d, int) else size for d in v.shape) for size in FIXTURES[name]]
        for v in model.graph.inputs
        if v.shape is not None and not v.shape.is_static()
    }
    for target in map(find_target, ("rtx-turing", "rtx-ampere", "rtx-ada", "rtx-blackwell")):
        errors = [f for f in lint(model, target) if f.severity == "error"]
        assert target.sm is not None
        built = builder.verdict(path.read_bytes(), target.sm, shapes) == ACCEPTS
        assert built == (not errors), f"{target.name}: {errors}"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rtx-turing", "rtx-ampere", "rtx-ada", "rtx-blackwell"])
@pytest.mark.filterwarnings("ignore")
def test_onnx_s_own_node_tests(name: str, builder: RealBuilder) -> None:
    """No error on what builds, and nearly all of what is refused foreseen, over every operator that ONNX tests."""
    from onnx.backend.test.case.node import collect_testcases

    target, wrong, missed, refused = find_target(name), [], [], 0
    assert target.sm is not None
    for test in collect_testcases(None):
        if test.model is None or _lacks_profile(test.model):
            continue
        errors = [f for f in lint(ir.from_proto(test.model), target) if f.severity == "error"]
        built = builder.verdict(test.model.SerializeToString(), target.sm) == ACCEPTS
        refused += not built
        if built and errors:
            wrong.append((test.name, errors[0]))
        if not built and not errors:
            missed.append(test.name)
    assert wrong == []
    assert refused > 500
    assert len(missed) <= (1 - FEWEST) * refused, missed


def _lacks_profile(model: object) -> bool:
    """Whether an input decides a shape or has an open one: such tests need a profile that nobody wrote."""
    from onnx import ModelProto

    assert isinstance(model, ModelProto)
    graph = ir.from_proto(model).graph
    integers = {ir.DataType.INT64, ir.DataType.INT32}
    open_shape = any(v.shape is None or not v.shape.is_static() for v in graph.inputs)
    return open_shape or any(v.dtype in integers and len(v.shape or ()) <= 1 for v in graph.inputs)
