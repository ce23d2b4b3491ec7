"""The process that builds, with a fake TensorRT in it: what comes back, and that nothing half-made stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from trt_graphs import model_of, quantize, random_weights, write
from trt_script import write_fake

from edgemm.backends._trt.process import ROOT
from edgemm.backends.tensorrt import (
    BuildRequest,
    Progress,
    SizeRange,
    Supervision,
    build_engine,
    make_profiles,
    read_sidecar,
    sidecar_file,
)
from edgemm.errors import BackendError, MissingExtraError, RecipeError
from edgemm.runtime._trt.sidecar import Sidecar, dumps
from edgemm.tensors import TensorSpec

MODEL = model_of(
    "g (float[batch,64] x) => (float[batch,16] y) { [fc] y = MatMul(x, w) }", random_weights(w=(64, 16))
)
PROFILES = make_profiles((TensorSpec("x", "float32", ("batch", 64)),), [{"batch": SizeRange(1, 2, 4)}])


@pytest.fixture
def request_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Returns a function: what the fake TensorRT does in a build -> the request to try it with."""
    place, out = tmp_path / "path", tmp_path / "out"
    place.mkdir()
    out.mkdir()
    monkeypatch.setenv("PYTHONPATH", f"{place}{os.pathsep}{Path(__file__).parent}")

    def make(body: str = "pass", model=MODEL) -> BuildRequest:
        write_fake(place, f"print('TensorRT prints this itself', flush=True)\n{body}", steps=50)
        onnx = write(model, tmp_path)
        return BuildRequest(onnx, out / "m.engine", "tensorrt", "encoder", ("camera",), profiles=PROFILES)

    return make


def left(request: BuildRequest) -> list[str]:
    return sorted(f.name for f in request.engine.parent.iterdir())


def test_engine_and_sidecar(request_for) -> None:
    seen: list[Progress] = []
    request = request_for(model=quantize(MODEL))
    built = build_engine(replace(request, precisions=("int8",)), Supervision(progress=seen.append))
    assert built.engine == request.engine
    assert left(request) == ["m.engine", "m.engine.json"]
    assert read_sidecar(request.engine) == built.sidecar
    assert built.sidecar.precisions == {"int8": 1}
    assert sidecar_file(request.engine).read_bytes() == dumps(built.sidecar)
    phases = [p.phase for p in seen]
    assert list(dict.fromkeys(phases)) == ["read", "parse", "build", "Building", "write"]
    assert str(seen[-1]) == "write 0/1"


def test_relative_paths(request_for, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for()
    monkeypatch.chdir(request.onnx.parent)
    relative = replace(request, onnx=Path("model.onnx"), engine=Path("out/m.engine"))
    assert build_engine(relative).engine == request.engine
    assert left(request) == ["m.engine", "m.engine.json"]


def test_equal_requests_give_equal_files(request_for) -> None:
    request, made = request_for(), []
    for _ in range(2):
        built = build_engine(request)
        made.append((request.engine.read_bytes(), dumps(replace(built.sidecar, seconds=0.0))))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("body", "message", "hint"),
    [
        (
            "os.kill(os.getpid(), signal.SIGSEGV)",
            "was ended by SIGSEGV (it was at build 0/1): TensorRT prints this",
            "",
        ),
        ("os.kill(os.getpid(), signal.SIGKILL)", "was ended by SIGKILL", "memory"),
        ("os._exit(7)", "ended with exit code 7", ""),
        (
            "raise ZeroDivisionError('a bug')",
            "ended with exit code 1 (it was at build 0/1): ZeroDivisionError: a bug",
            "",
        ),
        ("raise RuntimeError('out of luck')", "stopped while it built the engine: out of luck", ""),
        ("return None", "cannot build the engine: it gave no reason", ""),
    ],
)
def test_crash_is_one_error_and_leaves_what_was_there(request_for, body: str, message: str, hint: str) -> None:
    request = request_for(body)
    request.engine.write_bytes(b"an older one")
    with pytest.raises(BackendError) as caught:
        build_engine(request)
    assert message in str(caught.value)
    assert str(caught.value).startswith("stage 'encoder' (camera): ")
    assert hint in caught.value.hint
    assert left(request) == ["m.engine"]
    assert request.engine.read_bytes() == b"an older one"


def test_timeout(request_for) -> None:
    request = request_for("time.sleep(60)")
    with pytest.raises(BackendError, match=r"took longer than 1.5 s \(it was at ") as caught:
        build_engine(request, Supervision(timeout=1.5))
    assert "timing cache" in caught.value.hint
    assert left(request) == []


def test_cancel(request_for) -> None:
    request, cancel, seen = request_for("time.sleep(60)"), threading.Event(), []

    def note(progress: Progress) -> None:
        seen.append(progress.phase)
        if progress.phase == "build":
            cancel.set()

    with pytest.raises(BackendError, match=r"the build was cancelled \(it was at build 0/1\)"):
        build_engine(request, Supervision(progress=note, cancelled=cancel.is_set))
    assert seen == ["read", "parse", "build"]
    assert left(request) == []


def test_interrupt_ends_the_worker(request_for) -> None:
    request = request_for("time.sleep(60)")

    def interrupt(progress: Progress) -> None:
        if progress.phase == "build":
            raise KeyboardInterrupt

    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        build_engine(request, Supervision(progress=interrupt))
    assert time.monotonic() - start < 30  # not the minute that the build takes
    assert left(request) == []


def test_worker_ends_when_the_caller_is_gone(request_for, tmp_path: Path) -> None:
    request = request_for("open(os.environ['ALIVE'], 'w').write(str(os.getpid())); time.sleep(60)")
    alive, output = tmp_path / "alive", tmp_path / "out" / "part"
    command = [sys.executable, "-m", "edgemm.backends._trt.worker"]
    environment = os.environ | {"ALIVE": str(alive)}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=ROOT,
        env=environment,
    ) as process:
        assert process.stdin is not None
        process.stdin.write(json.dumps({"request": request.to_json(), "output": str(output)}).encode() + b"\n")
        process.stdin.flush()
        while not alive.exists():
            time.sleep(0.01)
        output.write_bytes(b"half")
        process.stdin.close()
        assert process.wait(30) == 1
    assert not output.exists()


def test_missing_module_is_named(tmp_path: Path) -> None:
    request = BuildRequest(write(MODEL, tmp_path), tmp_path / "e", "tensorrt", profiles=PROFILES)
    with pytest.raises(MissingExtraError, match=r"'tensorrt' is needed .* does not import") as caught:
        build_engine(request)
    assert "edgemm[tensorrt]" in caught.value.hint
    assert not (tmp_path / "e").exists()


def test_what_is_wrong_is_said_before_a_process_starts(request_for, monkeypatch: pytest.MonkeyPatch) -> None:
    request = request_for()
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(RecipeError, match="'batch' of input 'x' are dynamic"):
        build_engine(replace(request, profiles=()))
    with pytest.raises(BackendError, match=r"no such model|No such file"):
        build_engine(replace(request, onnx=Path("nothing.onnx")))
    with pytest.raises(BackendError, match=r"the folder '.*nowhere' does not exist"):
        build_engine(replace(request, engine=request.engine.parent / "nowhere" / "e"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes anywhere")
def test_folder_that_is_read_only(request_for) -> None:
    request = request_for()
    request.engine.parent.chmod(0o500)
    with pytest.raises(BackendError, match="Permission denied"):
        build_engine(request)


def test_engine_that_cannot_be_put_into_place(request_for) -> None:
    request = request_for()
    request.engine.mkdir()
    with pytest.raises(BackendError, match=r"stage 'encoder' .*: Is a directory"):
        build_engine(request)
    assert left(request) == ["m.engine"]


# --- the sidecar ---


@pytest.fixture
def built(request_for) -> tuple[Path, Sidecar]:
    made = build_engine(request_for())
    return made.engine, made.sidecar


def test_changed_engine_is_refused(built: tuple[Path, Sidecar]) -> None:
    engine, _ = built
    engine.write_bytes(b"x" + engine.read_bytes()[1:])
    with pytest.raises(BackendError, match="its sidecar says"):
        read_sidecar(engine)
    engine.unlink()
    with pytest.raises(BackendError, match=r"m\.engine: No such file"):
        read_sidecar(engine)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "cannot be read: 'format'"),
        ('{"format": 2}', "it has format 2, this edgemm reads 1"),
        ('{"format": 1}', "cannot be read"),
    ],
)
def test_damaged_sidecar_is_refused(built: tuple[Path, Sidecar], text: str, message: str) -> None:
    engine, _ = built
    sidecar_file(engine).write_text(text)
    with pytest.raises(BackendError, match=message):
        read_sidecar(engine)
    sidecar_file(engine).unlink()
    with pytest.raises(BackendError, match=r"m\.engine\.json: No such file"):
        read_sidecar(engine)


def test_builder_imports_numpy_and_the_standard_library_only() -> None:
    code = """
import sys
before = set(sys.modules)
import edgemm.backends.tensorrt, edgemm.backends._trt.worker
new = {name.partition(".")[0] for name in set(sys.modules) - before}
print(sorted(n for n in new - set(sys.stdlib_module_names) if not n.startswith("_cy") and n != "cython_runtime"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "['edgemm', 'numpy']"
