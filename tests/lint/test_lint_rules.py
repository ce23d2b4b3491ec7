"""Each rule finds what it is for, at its node, for the targets that it is for, and nothing else."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
from lint_models import AS_IT_SHOULD_BE, CASES, Case

from edgemm.backends.targets import find_target
from edgemm.graph import digest
from edgemm.lint import SEVERITIES, Finding, lint
from edgemm.lint.registry import RULES

JETSON = "jetson-orin-nano"


def found(case: Case, target: str) -> tuple[Finding, ...]:
    return lint(ir.from_proto(case.proto()), find_target(target))


def case(name: str) -> Case:
    return next(c for c in (*CASES, *AS_IT_SHOULD_BE) if c.name == name)


def graph(text: str, opset: int = 20) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": {opset}]>\n{text}'))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_finds(case: Case) -> None:
    for target in case.targets:
        findings = found(case, target)
        hits = [f for f in findings if f.rule == case.rule and f.severity == case.severity]
        assert hits, f"{target}: {findings}"
        if case.node is not None:
            assert case.node in {f.node for f in hits}
        assert {f.rule for f in findings} <= {case.rule, *case.also}, target
        assert all(f.reason and f.fix and f.where for f in findings)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_finds_nothing_where_it_builds(case: Case) -> None:
    for target in case.clean:
        assert [f for f in found(case, target) if (f.rule, f.severity) == (case.rule, case.severity)] == [], target


@pytest.mark.parametrize("case", AS_IT_SHOULD_BE, ids=lambda c: c.name)
def test_finds_nothing_in_what_is_right(case: Case) -> None:
    for target in case.targets:
        assert found(case, target) == (), target


def test_rules_and_severities_are_known() -> None:
    findings = [f for c in CASES for t in ("ort-tensorrt", JETSON) for f in found(c, t)]
    assert {f.rule for f in findings} <= set(RULES)
    assert {f.severity for f in findings} <= set(SEVERITIES)


def test_every_rule_but_those_of_shapes_is_in_the_list() -> None:
    listed = {c.rule for c in CASES}
    elsewhere = {"operator-version", "not-worth-int8"} | {r for r in RULES if r.startswith("profile-")}
    assert set(RULES) - elsewhere == listed


def test_the_model_stays_as_it_is() -> None:
    model = ir.from_proto(case("det in a local function").proto())
    before = digest(model)
    lint(model, find_target("rtx-ampere"))
    assert digest(model) == before
    assert len(model.functions) == 1


def test_nodes_of_bodies_are_named_with_what_they_are_in() -> None:
    (finding,) = found(case("unique in a branch"), "rtx-ampere")
    assert (finding.scope, finding.where) == ("y", "Unique 'y/u'")


def test_onnx_runtime_falls_back_where_tensorrt_stops() -> None:
    (finding,) = found(case("unique"), "ort-tensorrt")
    assert finding.severity == "warning"
    assert "ONNX Runtime then runs it" in finding.reason


def test_several_findings_at_once_with_errors_first() -> None:
    """TensorRT would stop at the first of them."""
    model = graph(
        """g (float16[4,8] x, int16[4] i, double[4] d) => (float[4,8] y, float[4] j, double[4] e) {
            u = Unique(x)  n = NonZero(u)  y = Add(x, w)  j = Cast<to = 1>(i)  e = Add(d, d) }"""
    )
    model.graph.initializers["w"] = ir.Value(name="w", const_value=ir.tensor([1.0], name="w"))
    for node in model.graph:
        if node.op_type == "Add" and node.inputs[0] is not None and node.inputs[0].name == "x":
            node.replace_input_with(1, model.graph.initializers["w"])
    findings = lint(model, find_target("rtx-ampere"))
    assert [f.rule for f in findings][-1] == "double"
    assert {f.rule for f in findings} == {"operator", "tensor-type", "mixed-types", "double"}


class TestVersions:
    """A Jetson has one of several TensorRT versions; what some of them lack is a warning that names them."""

    def test_what_the_oldest_lacks(self) -> None:
        model = graph("g (float[4,8] x) => (float[4,8] y) { y = Gelu(x) }")
        rules = {f.rule: f for f in lint(model, find_target(JETSON))}
        assert set(rules) == {"operator-version", "opset"}
        assert rules["operator-version"].severity == "warning"
        assert "TensorRT 8.6 (JetPack 6.0) it has not" in rules["operator-version"].reason
        assert "opset 20" in rules["opset"].reason
        assert rules["opset"].fix == "use JetPack 6.1 or later"  # the exporter goes no lower than opset 18
        assert lint(model, find_target("jetson-thor")) == ()

    def test_advice_can_be_followed(self) -> None:
        fixes = [f.fix for c in CASES for target in c.targets for f in found(c, target)]
        assert any("convert for a target that runs it" in fix for fix in fixes)
        assert not [fix for fix in fixes if "backend" in fix or "opset 17" in fix]

    def test_bf16_and_int4(self) -> None:
        (finding,) = (f for f in found(case("bf16"), JETSON) if f.rule == "precision")
        assert finding.severity == "warning"
        assert "from TensorRT 10.0 on; TensorRT 8.6 (JetPack 6.0)" in finding.reason
        (finding,) = (f for f in found(case("int4 weights"), JETSON) if f.rule == "precision")
        assert finding.severity == "warning"

    def test_fp8_exists_on_thor_and_not_on_orin(self) -> None:
        assert [f.severity for f in found(case("fp8"), JETSON) if f.rule == "precision"] == ["error"]
        assert [f for f in found(case("fp8"), "jetson-thor") if f.rule == "precision"] == []

    def test_scatter_with_reduction_from_10_0_on(self) -> None:
        (finding,) = (f for f in found(case("scatter with reduction"), JETSON) if f.rule == "operator-form")
        assert finding.severity == "warning"
        assert "before TensorRT 10.0" in finding.reason

    def test_an_opset_that_every_version_knows(self) -> None:
        assert lint(graph("g (float[4] x) => (float[4] y) { y = Relu(x) }", 17), find_target(JETSON)) == ()


class TestWorth:
    """Int8 that gains nothing is a note: it builds, and the answer is right."""

    def findings(self, name: str, **changed: object) -> tuple[Finding, ...]:
        import dataclasses

        return found(dataclasses.replace(case(name), **changed), "rtx-ampere")  # type: ignore[arg-type]

    def test_groups_of_three_channels(self) -> None:
        from lint_models import CONV, CONV_WEIGHTS, full, integers

        weights = CONV_WEIGHTS | {"w": integers(32, 3, 1, 1), "sw": full(0.01, 32)}
        text = CONV.replace("[1,16,8,8]", "[1,6,8,8]").replace("<kernel", "<group = 2, kernel")
        (note,) = self.findings("int8 convolution", text=text, weights=weights)
        assert (note.rule, note.severity, note.node) == ("not-worth-int8", "note", "y")
        assert "3 input and 16 output channels per group" in note.reason

    def test_depthwise_has_kernels_of_its_own(self) -> None:
        from lint_models import CONV, CONV_WEIGHTS, full, integers

        weights = CONV_WEIGHTS | {"w": integers(32, 1, 1, 1), "sw": full(0.01, 32)}
        text = CONV.replace("[1,16,8,8]", "[1,32,8,8]").replace("<kernel", "<group = 32, kernel")
        assert self.findings("int8 convolution", text=text, weights=weights) == ()

    @pytest.mark.parametrize(
        ("rows", "inner", "outer", "reason"),
        [(1, 64, 64, "one row"), (32, 8, 64, "8 input features"), (32, 64, 10, "10 output features")],
    )
    def test_products(self, rows: int, inner: int, outer: int, reason: str) -> None:
        import numpy as np
        from lint_models import MATMUL_INT8, MATMUL_WEIGHTS, full, integers

        weights = MATMUL_WEIGHTS | {
            "w": integers(inner, outer),
            "sw": full(0.01, outer),
            "zw": full(0, outer, dtype=np.int8),
        }
        text = MATMUL_INT8.replace("[32,64] x", f"[{rows},{inner}] x").replace("[32,64] y", f"[{rows},{outer}] y")
        (note,) = self.findings("int8 product", text=text, weights=weights)
        assert reason in note.reason


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["jetson-orin-nano", "ort-tensorrt"])
def test_every_operator_that_onnx_tests_is_read(name: str) -> None:
    """Sequences, options, strings and functions included; nothing raises, and every finding is of a known rule."""
    from onnx.backend.test.case.node import collect_testcases

    target, rules = find_target(name), set()
    for test in collect_testcases(None):
        if test.model is not None:
            rules |= {f.rule for f in lint(ir.from_proto(test.model), target)}
    assert rules <= set(RULES)
    assert {"operator", "operator-form", "tensor-type", "zero-point", "double"} <= rules
