"""OpenVINO sessions against ONNX Runtime on the same file: signature, values, shapes, threads, errors."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from builders import write_model_with_outside_weight

from edgemm.bundle import Manifest, Variant, read_manifest, write_bundle
from edgemm.errors import BackendError, BundleError, MissingExtraError, UnsupportedDeviceError
from edgemm.runtime import SessionOptions, open_session
from edgemm.runtime import openvino as module
from edgemm.runtime.openvino import MAX_FIXED, OpenVinoSession, capabilities
from edgemm.runtime.ort import OrtSession

HEADER = '<ir_version: 10, opset_import: ["" : 20]>\n'
TYPES = """g (float[n,4] x, int64[n,k] i, bool[n] b, float16[n,3] h, float s, double[n] d, uint8[2,2] u)
 => (float[n,4] y, int64[n,k] j, bool[n] c, float16[n,3] g, float t, double[n] e, uint8[2,2] v, float[n,4] y2)
{ y = Mul(x, s) j = Neg(i) c = Not(b) g = Neg(h) t = Neg(s) e = Neg(d) v = Identity(u) y2 = Identity(y) }"""
LINEAR = """g (float[n,2] x) => (float[n,3] y) <float[2,3] w = {1,2,3,4,5,6}> { y = MatMul(x, w) }"""

Bundle = Callable[..., Path]
ONE_THREAD = SessionOptions(threads=1)


def write(path: Path, text: str) -> Path:
    onnx.save(onnx.parser.parse_model(HEADER + text), path)
    return path


def typed_feed(n: int, k: int = 3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(n)
    return {
        "x": rng.normal(size=(n, 4)).astype(np.float32),
        "i": rng.integers(-9, 9, (n, k)),
        "b": rng.integers(0, 2, n).astype(bool),
        "h": rng.normal(size=(n, 3)).astype(np.float16),
        "s": np.array(2, np.float32),
        "d": rng.normal(size=n),
        "u": np.arange(4, dtype=np.uint8).reshape(2, 2),
    }


def test_signature_and_every_dtype_are_those_of_onnxruntime(tmp_path: Path) -> None:
    file = write(tmp_path / "types.onnx", TYPES)
    mine, reference = OpenVinoSession(file, ONE_THREAD), OrtSession(file, ONE_THREAD)
    assert (mine.inputs, mine.outputs) == (reference.inputs, reference.outputs)
    for n, k in ((1, 3), (5, 3), (0, 3), (2, 7), (1, 1), (2, 0)):
        feed = typed_feed(n, k)
        for got, want in zip(mine.run(feed), reference.run(feed), strict=True):
            assert got.dtype == want.dtype
            assert got.shape == want.shape
            if want.dtype == np.float64:  # computed in float32
                want = want.astype(np.float32).astype(np.float64)
            np.testing.assert_array_equal(got, want)


def test_initializers_that_are_listed_as_inputs_and_unnamed_sizes(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(HEADER + "g (float[?,2] x, float[2] w) => (float[?,2] y) { y = Add(x, w) }")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(2, np.float32), "w"))
    onnx.save(model, tmp_path / "m.onnx")
    mine, reference = (kind(tmp_path / "m.onnx", ONE_THREAD) for kind in (OpenVinoSession, OrtSession))
    assert [i.name for i in mine.inputs] == ["x"]
    assert (mine.inputs, mine.outputs) == (reference.inputs, reference.outputs)


def test_read_only_feed_is_taken_and_outputs_are_owned(tmp_path: Path) -> None:
    session = OpenVinoSession(write(tmp_path / "m.onnx", LINEAR), ONE_THREAD)
    for n in (1, 2, 3, 4):  # fixed shapes first, then the dynamic model
        x = np.ones((n, 2), np.float32)
        x.flags.writeable = False
        (first,) = session.run({"x": x})
        kept = first.copy()
        (second,) = session.run({"x": x * 3})
        np.testing.assert_array_equal(first, kept)
        np.testing.assert_array_equal(second, kept * 3)
        assert first.flags.owndata
        assert first.flags.writeable


def test_only_so_many_shapes_get_a_model_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_REMEMBERED", 8)
    session = OpenVinoSession(write(tmp_path / "m.onnx", LINEAR), ONE_THREAD)
    for n in [*range(1, 20), 1, 2, 3]:
        x = np.full((n, 2), n, np.float32)
        np.testing.assert_array_equal(session.run({"x": x})[0], x @ [[1, 2, 3], [4, 5, 6]])
    assert session._compiler is not None
    assert len(session._compiler.fixed) == MAX_FIXED
    assert len(session._makers) <= 8


@pytest.mark.parametrize("sizes", [(1,), (1, 2, 3, 4)])
def test_threads_in_parallel_get_their_own_answers(tmp_path: Path, sizes: tuple[int, ...]) -> None:
    session = OpenVinoSession(write(tmp_path / "m.onnx", LINEAR), ONE_THREAD)
    weights = np.array([[1, 2, 3], [4, 5, 6]], np.float32)

    def call(value: int) -> bool:
        x = np.full((sizes[value % len(sizes)], 2), value, np.float32)
        return bool(np.array_equal(session.run({"x": x})[0], x @ weights))

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(call, range(400)))


def test_sizes_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    text = "g (float[n,3] x, float[m,3] z) => (float[k,3] y) { y = Add(x, z) }"
    session = OpenVinoSession(write(tmp_path / "m.onnx", text), ONE_THREAD)
    for x, z in ((2, 5), (3, 4), (4, 3), (7, 2)):
        with pytest.raises(BackendError, match=rf"engine 'm.onnx'.*inputs of \({x}, 3\), \({z}, 3\)") as caught:
            session.run({"x": np.ones((x, 3), np.float32), "z": np.ones((z, 3), np.float32)})
        assert "Exception from" not in str(caught.value)


def test_closed_session_and_files_that_are_no_engine(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = write(tmp_path / "m.onnx", LINEAR)
    session = OpenVinoSession(file, ONE_THREAD)
    session.close()
    session.close()
    with pytest.raises(BundleError, match=r"engine 'm.onnx' is closed"):
        session.run({"x": np.ones((1, 2), np.float32)})
    data = file.read_bytes()
    for number, content in enumerate((b"", data[: len(data) // 2], b"PK\x03\x04", b"\xff" * 100)):
        (tmp_path / f"{number}.onnx").write_bytes(content)
        with pytest.raises(BackendError, match=f"engine '{number}.onnx'") as caught:
            OpenVinoSession(tmp_path / f"{number}.onnx", ONE_THREAD)
        assert caught.value.hint
    text = write(tmp_path / "t.onnx", "g (string[n] x) => (string[n] y) { y = Identity(x) }")
    with pytest.raises(BackendError, match=r"input 'x' is no tensor of numbers"):
        OpenVinoSession(text, ONE_THREAD)
    with pytest.raises(BackendError, match=r"engine 'gone.onnx' cannot be read"):
        OpenVinoSession(tmp_path / "gone.onnx", ONE_THREAD)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("value", [2**31, 2**40, -(2**31) - 1])
def test_integers_that_openvino_would_cut_off_are_refused(tmp_path: Path, value: int) -> None:
    session = OpenVinoSession(
        write(tmp_path / "m.onnx", "g (int64[n] x) => (int64[n] y) { y = Neg(x) }"), ONE_THREAD
    )
    np.testing.assert_array_equal(session.run({"x": np.array([2**31 - 1, 1 - 2**31])})[0], [1 - 2**31, 2**31 - 1])
    with pytest.raises(BackendError, match=r"input 'x': .*OpenVINO computes in int32"):
        session.run({"x": np.array([1, value])})


def test_weights_outside_of_the_file_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(bytes(8))
    write_model_with_outside_weight(tmp_path / "sub" / "m.onnx")
    with pytest.raises(BackendError, match=r"engine 'm.onnx' does not run in OpenVINO"):
        OpenVinoSession(tmp_path / "sub" / "m.onnx", ONE_THREAD)


def test_precisions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "m.onnx", LINEAR)
    with pytest.raises(BackendError, match=r"no precision 'f8' \(precisions: f32, bf16\)"):
        OpenVinoSession(file, SessionOptions(precision="f8"))
    with pytest.raises(BackendError, match="ONNX Runtime has no precision 'bf16'"):
        OrtSession(file, SessionOptions(precision="bf16"))
    if "BF16" in capabilities():
        session = OpenVinoSession(file, SessionOptions(threads=1, precision="bf16"))
        (y,) = session.run({"x": np.ones((1, 2), np.float32)})
        assert y.dtype == np.float32
        np.testing.assert_allclose(y, [[5, 7, 9]], rtol=1e-2)
    monkeypatch.setitem(module.PRECISIONS, "bf16", "A_PRECISION_THAT_NO_PROCESSOR_HAS")
    with pytest.raises(UnsupportedDeviceError, match="computes in bf16, which this processor does not have"):
        OpenVinoSession(file, SessionOptions(precision="bf16"))


@pytest.mark.parametrize(
    ("asked", "engine", "threads"), [(0, 0, 0), (0, 1, 1), (4, 0, 4), (4, 1, 1), (1, 4, 1), (2, 2, 2)]
)
def test_threads_of_an_engine_cap_those_of_the_caller(asked: int, engine: int, threads: int) -> None:
    options = SessionOptions(threads=asked).for_engine({"threads": engine} if engine else {})
    assert (options.threads, options.precision) == (threads, "f32")
    assert SessionOptions(threads=asked).for_engine({"precision": "bf16"}).precision == "bf16"


def mixed(bundle: Path, backends: Mapping[str, str], *others: Variant, **options: object) -> Path:
    """Writes the bundle again with another backend for some engines."""
    manifest = read_manifest(bundle)
    (first,) = manifest.shipped
    engines = tuple(
        replace(e, backend=backends.get(e.name, e.backend), options=options if e.name in backends else {})
        for e in first.engines
    )
    name = "+".join(sorted({e.backend for e in engines}))
    variants = (replace(first, name="mixed", backend=name, engines=engines), *others)
    files = {n: (bundle / n).read_bytes() for n in manifest.files}
    path = bundle.with_suffix(".mixed")
    write_bundle(path, replace(manifest, variants=variants), files)
    return path


@pytest.mark.parametrize("names", [("image",), ("audio",), ("image", "fusion"), ("image", "audio", "fusion")])
def test_bundle_of_mixed_backends_equals_the_plain_one(fusion_bundle: Path, names: tuple[str, ...]) -> None:
    path = mixed(fusion_bundle, dict.fromkeys(names, "openvino"), threads=1)
    rng = np.random.default_rng(0)
    with open_session(path) as session, open_session(fusion_bundle) as plain:
        assert session.variant.backend == ("openvino" if len(names) == 3 else "onnxruntime+openvino")
        assert [e.backend for e in session.variant.engines].count("openvino") == len(names)
        for n in (1, 4, 2, 3):
            feed = {"image": rng.normal(size=(n, 4)), "audio": rng.normal(size=(n, 2, 2))}
            feed = {name: value.astype(np.float32) for name, value in feed.items()}
            got, want = session.run(feed), plain.run(feed)
            assert got.keys() == want.keys()
            for name, value in want.items():
                np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-6)


def test_state_goes_round_through_openvino(make_bundle: Bundle) -> None:
    text = "g (float[batch,2] x, float[batch,2] h) => (float[batch,2] y, float[batch,2] h_out) "
    text += "{ h_out = Add(x, h)  y = Neg(h_out) }"
    bundle = make_bundle({"g": text}, outputs=("y", "h_out"), states={"h": "h_out"}, backend="openvino")
    with open_session(bundle) as session:
        x = np.ones((2, 2), np.float32)
        for call in (1, 2, 3):
            np.testing.assert_array_equal(session.run({"x": x})["y"], -x * call)


def test_auto_passes_over_a_precision_that_the_processor_lacks(
    fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(module.PRECISIONS, "bf16", "A_PRECISION_THAT_NO_PROCESSOR_HAS")
    (plain,) = read_manifest(fusion_bundle).shipped
    path = mixed(fusion_bundle, {"image": "openvino"}, plain, precision="bf16")
    with caplog.at_level(logging.WARNING, "edgemm"), open_session(path) as session:
        assert session.variant.name == "cpu-fp32"
    assert "runs cpu-fp32 by onnxruntime; not mixed by onnxruntime+openvino: " in caplog.text
    assert "bf16, which this processor does not have" in caplog.text
    with pytest.raises(UnsupportedDeviceError):
        open_session(path, variant="mixed")


def test_openvino_is_named_when_it_is_missing(fusion_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = mixed(fusion_bundle, {"image": "openvino"})
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(MissingExtraError, match="'openvino' is needed to run this engine") as caught:
        open_session(path)
    assert caught.value.hint == "pip install 'edgemm[openvino]'"


def test_unknown_option_and_wrong_backend_name_are_refused(fusion_bundle: Path) -> None:
    manifest: Manifest = read_manifest(fusion_bundle)
    files = {name: (fusion_bundle / name).read_bytes() for name in manifest.files}
    with pytest.raises(BundleError, match=r"no option 'streams' \(options: threads, precision, "):
        mixed(fusion_bundle, {"image": "openvino"}, streams=2)
    with pytest.raises(BundleError, match="option 'threads' is -1, expected a number of threads"):
        mixed(fusion_bundle, {"image": "openvino"}, threads=-1)
    wrong = replace(manifest.shipped[0], backend="openvino")
    with pytest.raises(BundleError, match="its backend is 'openvino', its engines have 'onnxruntime'"):
        write_bundle(fusion_bundle.with_suffix(".x"), replace(manifest, variants=(wrong,)), files)


def test_nothing_is_printed_written_or_sent(tmp_path: Path) -> None:
    """A fresh process without network and with an empty home: silent, and the home stays empty."""
    file = write(tmp_path / "m.onnx", LINEAR)
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import socket, sys\n"
        "def refuse(*_, **__): raise SystemExit('a connection was tried')\n"
        "socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse\n"
        "import numpy as np\n"
        "from pathlib import Path\n"
        "from edgemm.runtime import SessionOptions\n"
        "from edgemm.runtime.openvino import OpenVinoSession\n"
        "session = OpenVinoSession(Path(sys.argv[1]), SessionOptions())\n"
        "session.run({'x': np.ones((3, 2), np.float32)})\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        check=False,
        env={"HOME": str(home)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.iterdir()) == []
