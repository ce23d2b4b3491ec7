"""`edgemm check`: findings are printed, not raised; the exit code says whether one is an error."""

from __future__ import annotations

from pathlib import Path

HEAD = '<ir_version: 10, opset_import: ["": 17]>\n'
GOOD = HEAD + "g (float[batch,4] x) => (float[batch,4] y) { y = Relu(x) }"
BAD = (
    HEAD
    + """g (float[batch,4] x, double[3] d) => (int64[2,n] a, int64[2,m] b, double[3] e) {
    [first] a = NonZero(x)  [second] b = NonZero(x)  [third] e = Neg(d) }"""
)
QUIET = HEAD + "g (double[3] d) => (double[3] e) { e = Neg(d) }"


def test_a_graph_that_builds(edgemm, onnx_file) -> None:
    result = edgemm("check", onnx_file(GOOD), "--target", "rtx-ampere")
    assert (result.code, result.err) == (0, "")
    assert result.out.splitlines()[-1] == "nothing found"
    assert "SM 86" in result.out


def test_a_target_without_rules_is_not_checked(edgemm, onnx_file) -> None:
    for target in ("cpu", "jetson-xavier"):
        result = edgemm("check", onnx_file(BAD), "--target", target)
        assert (result.code, result.err) == (0, "")
        assert result.out.splitlines()[-1] == f"not checked: no rule is about {target}"


def test_errors_are_printed_and_are_the_exit_code(edgemm, onnx_file) -> None:
    result = edgemm("check", onnx_file(BAD), "--target", "rtx-ampere")
    assert (result.code, result.err) == (1, "")
    lines = result.out.splitlines()
    assert "error    operator: NonZero 'first', tensor 'a'" in lines
    assert "         and so 1 more: second" in lines
    assert any(line.startswith("warning  double: input 'd'") for line in lines)
    assert sum(line.startswith("         fix: ") for line in lines) == 2
    assert lines[-1] == "2 errors, 1 warning"


def test_a_warning_is_no_error(edgemm, onnx_file) -> None:
    assert edgemm("check", onnx_file(QUIET), "--target", "rtx-ampere").code == 0


def test_targets_differ(edgemm, onnx_file) -> None:
    path = onnx_file(BAD)
    assert edgemm("check", path, "--target", "jetson-orin-nano").code == 0
    assert edgemm("check", path, "--target", "cpu").code == 0
    assert edgemm("check", path, "--target", "ort-tensorrt").code == 0


def test_json(edgemm, onnx_file) -> None:
    result = edgemm("check", onnx_file(BAD), "--target", "rtx-ampere", "--json")
    assert result.code == 1
    report = result.json
    assert report["target"] == "rtx-ampere"
    assert report["counts"] == {"error": 2, "warning": 1, "note": 0}
    first = report["findings"][0]
    assert (first["rule"], first["severity"], first["node"], first["tensor"]) == (
        "operator",
        "error",
        "first",
        "a",
    )
    assert first["reason"]
    assert first["fix"]


def test_a_bundle_names_stage_and_modality(edgemm, fusion_bundle: Path) -> None:
    result = edgemm("check", fusion_bundle, "--target", "rtx-turing")
    assert result.code == 1
    assert "note: no variant is made for rtx-turing; the float graphs were checked (cpu-fp32)" in result.out
    assert "float-product: MatMul" in result.out
    assert "in image (image) of cpu-fp32" in result.out
    assert edgemm("check", fusion_bundle, "--target", "rtx-ampere").code == 0


def test_shapes(edgemm, onnx_file) -> None:
    path = onnx_file(GOOD)
    assert edgemm("check", path, "--target", "rtx-ada", "--shapes", "x=1x4:2x4:8x4").code == 0
    result = edgemm("check", path, "--target", "rtx-ada", "--shapes", "y=1x4:2x4:8x4")
    assert result.code == 1
    assert "profile-missing: input 'x'" in result.out
    assert "profile-missing: input 'y'" in result.out


def test_what_is_wrong_with_the_call(edgemm, onnx_file, tmp_path: Path) -> None:
    path = onnx_file(GOOD)
    for shapes in ("x", "x=1x4", "x=1x4:2x4", "x=1,4:2,4:8,4"):
        result = edgemm("check", path, "--target", "rtx-ada", "--shapes", shapes)
        assert (result.code, result.out) == (2, "")
        assert "INPUT=MIN:OPT:MAX" in result.err
    assert edgemm("check", path).code == 2
    result = edgemm("check", path, "--target", "rtx-adda")
    assert (result.code, result.out) == (1, "")
    assert "did you mean 'rtx-ada'?" in result.err
    for missing in ("none.onnx", "none.edgemm"):
        result = edgemm("check", tmp_path / missing, "--target", "rtx-ada")
        assert (result.code, result.out) == (1, "")
        assert "no such" in result.err


def test_a_missing_package_is_named(edgemm_on_device, onnx_file) -> None:
    result = edgemm_on_device("check", onnx_file(GOOD), "--target", "rtx-ada")
    assert (result.code, result.out) == (1, "")
    assert "the package 'onnx' is needed to look inside a model" in result.err
    assert "pip install 'edgemm[convert]'" in result.err
