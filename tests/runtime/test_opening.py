"""Which variant opens, what is refused before it does, and bare ONNX files."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import write_model_with_outside_weight

from edgemm.bundle import Variant, read_manifest, write_bundle
from edgemm.errors import BackendError, BundleError
from edgemm.runtime import FusionSession, open_session

Bundle = Callable[..., Path]
HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'


def onnx_file(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(HEADER + text), path)
    return path


def rewritten(bundle: Path, variants: tuple[Variant, ...]) -> Path:
    """Writes the bundle again with other variants."""
    manifest = read_manifest(bundle)
    files = {name: (bundle / name).read_bytes() for name in manifest.files}
    path = bundle.with_suffix(".again")
    write_bundle(path, replace(manifest, variants=variants), files)
    return path


def on_backend(variant: Variant, backend: str, **changes: str) -> Variant:
    """Returns `variant` with every engine on `backend`."""
    engines = tuple(replace(e, backend=backend) for e in variant.engines)
    return replace(variant, backend=backend, engines=engines, **changes)


@pytest.mark.parametrize("target", ["auto", "cpu"])
def test_first_shipped_variant_is_opened(fusion_bundle: Path, target: str) -> None:
    with open_session(str(fusion_bundle), target=target, threads=1) as session:
        assert session.variant.name == "cpu-fp32"


def test_variant_by_name(fusion_bundle: Path) -> None:
    first = read_manifest(fusion_bundle).variants[0]
    bundle = rewritten(fusion_bundle, (first, replace(first, name="cpu-again")))
    assert open_session(bundle, variant="cpu-again").variant.name == "cpu-again"


def test_auto_skips_a_backend_that_is_not_installed(fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = read_manifest(fusion_bundle).variants[0]
    bundle = rewritten(fusion_bundle, (on_backend(first, "missing", name="gpu", target="gpu"), first))
    from edgemm.runtime import registry

    (bundle.parent / "absent_backend.py").write_text(
        "from edgemm._optional import require\n"
        "class Absent:\n"
        "    def __init__(self, engine, options):\n"
        "        require('a_package_that_nobody_has', extra='gpu', why='run this engine')\n"
    )
    monkeypatch.syspath_prepend(bundle.parent)
    monkeypatch.setitem(registry.SESSIONS, "missing", "absent_backend:Absent")
    assert open_session(bundle).variant.name == "cpu-fp32"
    with pytest.raises(Exception, match="'a_package_that_nobody_has' is needed to run this engine"):
        open_session(bundle, target="gpu")


def test_unknown_names_list_what_there_is(fusion_bundle: Path) -> None:
    for arguments, message, hint in (
        ({"target": "cpus"}, r"no target 'cpus' in this bundle \(targets: cpu\)", "did you mean 'cpu'?"),
        ({"target": "jetson-orin"}, "no target 'jetson-orin'", "use one of these"),
        ({"variant": "cpu-fp64"}, r"no variant 'cpu-fp64' in this bundle \(variants: cpu-fp32\)", "'cpu-fp32'?"),
        ({"variant": "cpu-int8"}, "'cpu-int8' was not shipped: 1.4 x slower than float", "cpu-fp32"),
    ):
        with pytest.raises(BundleError, match=message) as caught:
            open_session(fusion_bundle, **arguments)  # type: ignore[arg-type]
        assert hint in caught.value.hint


def test_unknown_backend_and_negative_threads(fusion_bundle: Path) -> None:
    first = read_manifest(fusion_bundle).variants[0]
    bundle = rewritten(fusion_bundle, (on_backend(first, "onnxrt"),))
    with pytest.raises(BackendError, match="no backend 'onnxrt'"):
        open_session(bundle)
    with pytest.raises(BackendError, match="threads: got -1"):
        open_session(fusion_bundle, threads=-1)


def test_changed_engine_is_refused_before_it_is_loaded(fusion_bundle: Path) -> None:
    engine = fusion_bundle / "engines/cpu-fp32/fusion.onnx"
    data = bytearray(engine.read_bytes())
    data[len(data) // 2] ^= 1
    engine.write_bytes(data)
    with pytest.raises(BundleError, match=r"'engines/cpu-fp32/fusion\.onnx' was changed"):
        open_session(fusion_bundle)


def test_extra_file_and_newer_schema_are_refused(fusion_bundle: Path) -> None:
    (fusion_bundle / "extra").write_text("")
    with pytest.raises(BundleError, match="the file 'extra' is not part of the bundle"):
        open_session(fusion_bundle)
    manifest = json.loads((fusion_bundle / "manifest.json").read_text())
    (fusion_bundle / "manifest.json").write_text(json.dumps(manifest | {"schema": 2}))
    with pytest.raises(BundleError, match="made by a newer edgemm, schema 2; this is 1"):
        open_session(fusion_bundle)


def test_engine_that_is_not_what_the_manifest_says_is_refused(fusion_bundle: Path) -> None:
    variant = read_manifest(fusion_bundle).variants[0]
    image, audio, fusion = variant.engines
    swapped = (replace(image, file=audio.file), audio, fusion)
    with pytest.raises(BundleError, match="engine 'image' takes audio; the manifest says image"):
        open_session(rewritten(fusion_bundle, (replace(variant, engines=swapped),)))


@pytest.mark.parametrize(
    ("dtype", "shape", "message"),
    [
        ("float64", ("batch", 4), r"has image\[batch,4\] float32; the manifest says image\[batch,4\] float64"),
        ("float32", ("batch", 5), r"the manifest says image\[batch,5\] float32"),
        ("float32", ("batch", 4, 1), r"the manifest says image\[batch,4,1\] float32"),
    ],
)
def test_manifest_that_is_wrong_about_an_input_is_refused(
    fusion_bundle: Path, dtype: str, shape: tuple[int | str, ...], message: str
) -> None:
    manifest = read_manifest(fusion_bundle)
    files = {name: (fusion_bundle / name).read_bytes() for name in manifest.files}
    first, *others = manifest.io.inputs
    io = replace(manifest.io, inputs=(replace(first, dtype=dtype, shape=shape), *others))
    path = fusion_bundle.with_suffix(".wrong")
    write_bundle(path, replace(manifest, io=io), files)
    with pytest.raises(BundleError, match=message):
        open_session(path)


def test_dtype_that_numpy_lacks_is_refused(make_bundle: Bundle) -> None:
    text = "g (float[batch,2] x) => (float[batch,2] y) { y = Neg(x) }"
    session = open_session(make_bundle({"g": text}, backend="null"))
    manifest = session.manifest
    io = replace(manifest.io, inputs=(replace(manifest.io.inputs[0], dtype="posit16"),))
    session._engines[0].inputs = io.inputs
    with pytest.raises(BundleError, match="input 'x' is posit16, which numpy does not have"):
        FusionSession(replace(manifest, io=io), session.variant, session._engines)


def test_engine_that_does_not_open_closes_the_others(fusion_bundle: Path) -> None:
    manifest = read_manifest(fusion_bundle)
    files = {name: (fusion_bundle / name).read_bytes() for name in manifest.files}
    files["engines/cpu-fp32/fusion.onnx"] = b"garbage"
    path = fusion_bundle.with_suffix(".broken")
    write_bundle(path, manifest, files)
    with pytest.raises(BackendError, match=r"engine 'fusion\.onnx' does not open in ONNX Runtime") as caught:
        open_session(path)
    assert caught.value.hint


def test_nothing_at_the_path(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="no such file or bundle"):
        open_session(tmp_path / "x.edgemm")


def test_bare_onnx_file(tmp_path: Path) -> None:
    text = "g (float[n,2] left, float[n,2] right) => (float[n,2] sum) { sum = Add(left, right) }"
    with open_session(onnx_file(tmp_path / "pair.onnx", text)) as session:
        assert session.io.modalities == {"left": "left", "right": "right"}
        assert session.io.batch == "n"
        assert [(s.name, s.role) for s in session.stages] == [("pair", "fusion head")]
        assert session.variant.layout == "whole"
        assert session.manifest.name == "pair"
        out = session.run({"left": np.ones((3, 2), np.float32), "right": np.ones((3, 2), np.float32)})
        np.testing.assert_array_equal(out["sum"], np.full((3, 2), 2))
    with pytest.raises(BundleError, match="runs on the target 'cpu', not on 'jetson'"):
        open_session(tmp_path / "pair.onnx", target="jetson")


@pytest.mark.parametrize(
    ("signature", "batch", "shapes"),
    [
        ("float[n,2] x) => (float[n,2] y) { y = Neg(x) }", "n", [("n", 2)]),
        ("float[?,2] x) => (float[?,2] y) { y = Neg(x) }", "batch", [("batch", 2)]),
        ("float[1,2] x) => (float[1,2] y) { y = Neg(x) }", 1, [(1, 2)]),
        ("float[4,2] x) => (float[4,2] y) { y = Neg(x) }", None, [(4, 2)]),
        ("float[1] x) => (float[1] y) { y = Neg(x) }", None, [(1,)]),
        ("float x) => (float y) { y = Neg(x) }", None, [()]),
        ("float[n,2] x, float s) => (float[n,2] y) { y = Mul(x, s) }", "n", [("n", 2), ()]),
        ("float[n,2] x, float[m,2] z) => (float[k,2] y) { y = Concat<axis=0>(x, z) }", None, [("n", 2), ("m", 2)]),
        ("float[2,?] x) => (float[2,?] y) { y = Neg(x) }", None, [(2, "x:1")]),
    ],
)
def test_batch_of_a_bare_onnx_file(
    tmp_path: Path, signature: str, batch: object, shapes: list[tuple[object, ...]]
) -> None:
    session = open_session(onnx_file(tmp_path / "m.onnx", f"g ({signature}"))
    assert session.io.batch == batch
    assert [i.shape for i in session.io.inputs] == shapes


def test_bare_onnx_of_batch_one_runs_many_samples(tmp_path: Path) -> None:
    session = open_session(onnx_file(tmp_path / "m.onnx", "g (float[1,2] x) => (float[1,2] y) { y = Neg(x) }"))
    x = np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(session.run({"x": x})["y"], -x)


def test_bare_onnx_with_text_inputs_is_refused(tmp_path: Path) -> None:
    file = onnx_file(tmp_path / "m.onnx", "g (string[n] x) => (string[n] y) { y = Identity(x) }")
    with pytest.raises(
        BackendError, match=r"input 'x' is a tensor\(string\), which edgemm does not run"
    ) as caught:
        open_session(file)
    assert "numbers only" in caught.value.hint


def test_truncated_and_foreign_files_are_refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    good = onnx_file(tmp_path / "m.onnx", "g (float[n,2] x) => (float[n,2] y) { y = Neg(x) }").read_bytes()
    for number, data in enumerate((b"", good[: len(good) // 2], b"PK\x03\x04", b"\xff" * 100)):
        file = tmp_path / f"{number}.onnx"
        file.write_bytes(data)
        with pytest.raises(BackendError, match=f"engine '{number}.onnx' does not open"):
            open_session(file)
    assert capfd.readouterr() == ("", "")


def test_bare_onnx_reads_no_file_outside_its_folder(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(np.arange(2, dtype=np.float32).tobytes())
    write_model_with_outside_weight(tmp_path / "sub" / "m.onnx")
    with pytest.raises(BackendError, match="does not open"):
        open_session(tmp_path / "sub" / "m.onnx")


def test_null_backend_gives_zeros(make_bundle: Bundle) -> None:
    text = "g (float[batch,2] x, int64[batch,k] i) => (float[batch,k,7] y, int64[batch] z) {}"
    session = open_session(make_bundle({"g": text}, backend="null"))
    out = session.run({"x": np.ones((3, 2), np.float32), "i": np.ones((3, 4), np.int64)})
    assert {n: (v.shape, v.dtype.name, v.any()) for n, v in out.items()} == {
        "y": ((3, 4, 7), "float32", False),
        "z": ((3,), "int64", False),
    }
    session.close()
    with pytest.raises(BundleError, match="closed"):
        session.run({"x": np.ones((3, 2), np.float32), "i": np.ones((3, 4), np.int64)})


def test_profile_file_is_written(fusion_bundle: Path, tmp_path: Path) -> None:
    from edgemm.runtime.ort import OrtSession
    from edgemm.runtime.session import SessionOptions

    engine = OrtSession(fusion_bundle / "engines/cpu-fp32/image.onnx", SessionOptions(profile_to=f"{tmp_path}/p"))
    engine.run({"image": np.ones((1, 4), np.float32)})
    engine.close()
    engine.close()
    (profile,) = tmp_path.glob("p*.json")
    assert any(event.get("cat") == "Node" for event in json.loads(profile.read_text()))


def test_opening_prints_nothing(fusion_bundle: Path) -> None:
    code = f"from edgemm.runtime import open_session; open_session({str(fusion_bundle)!r}).close()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == done.stderr == ""
