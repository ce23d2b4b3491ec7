"""`edgemm convert` stopped in the middle: Ctrl-C, a full disk, a folder that is read-only, another convert.

Each in a process of its own, as a user runs it. Nothing half-made stays, and nothing shows a traceback.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx.numpy_helper
import onnx.parser
import pytest
from cli_models import HEAD

from edgemm.bundle import read_manifest, verify
from edgemm.errors import BundleError
from edgemm.pipeline import convert

ROOT = Path(__file__).resolve().parents[2]
PAIR = f"""{HEAD}
pair (float[batch,4] image, float[batch,3] gyro) => (float[batch,7] y) {{ y = Concat<axis=1>(image, gyro) }}"""


@pytest.fixture
def model(onnx_file: Callable[..., Path]) -> Path:
    """image[4] and gyro[3], joined."""
    return onnx_file(PAIR)


@pytest.fixture
def heavy(tmp_path: Path) -> Path:
    """image[4] and gyro[508], joined and multiplied with 1 MB of weights."""
    model = onnx.parser.parse_model(f"""{HEAD}
    heavy (float[batch,4] image, float[batch,508] gyro) => (float[batch,512] y)
    {{ joined = Concat<axis=1>(image, gyro)  y = MatMul(joined, w) }}""")
    weights = np.random.default_rng(0).normal(size=(512, 512)).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(weights, "w"))
    path = tmp_path / "heavy.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def command(*args: object) -> list[str]:
    return [sys.executable, "-m", "edgemm", "convert", *map(str, args)]


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT)} | more


def until_line(process: subprocess.Popen[str], start: str, seconds: float = 120) -> str:
    """Reads stderr until a line begins with `start`; returns everything that was read."""
    assert process.stderr is not None
    said, end = "", time.monotonic() + seconds
    with selectors.DefaultSelector() as selector:
        selector.register(process.stderr, selectors.EVENT_READ)
        while time.monotonic() < end and selector.select(end - time.monotonic()):
            line = process.stderr.readline()
            said += line
            if not line or line.startswith(start):
                return said
    raise AssertionError(f"no line '{start}' within {seconds} s: {said}")


# -- Ctrl-C -----------------------------------------------------------------------------------------------------


def interrupt(folder: Path, after: str, wait: float, *args: object) -> None:
    """Sends SIGINT `wait` seconds after the line of step `after`, and checks that nothing is left."""
    output, scratch = folder / "output", folder / "scratch"
    output.mkdir()
    scratch.mkdir()
    with subprocess.Popen(
        command(*args, "-o", output / "out.edgemm"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        bufsize=1,
        env=environment(TMPDIR=str(scratch)),
    ) as process:
        said = until_line(process, after)
        time.sleep(wait)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, said + err
    assert out == ""
    assert err.rstrip().endswith("interrupted; nothing was written.")
    assert "Traceback" not in said + err
    assert os.listdir(output) == []
    assert [name for name in os.listdir(scratch) if name.startswith("edgemm")] == []


@pytest.mark.parametrize(
    ("after", "wait"),
    [
        pytest.param("load", 0.5, id="export"),
        pytest.param("export", 0.0, id="partition", marks=pytest.mark.slow),
        pytest.param("partition", 0.1, id="calibrate", marks=pytest.mark.slow),
        pytest.param("calibrate", 0.4, id="search", marks=pytest.mark.slow),
        pytest.param("search", 0.5, id="measure", marks=pytest.mark.slow),
    ],
)
def test_interrupt_of_a_torch_model_leaves_nothing(
    trained_folder: Path, tmp_path: Path, after: str, wait: float
) -> None:
    with np.load(trained_folder / "calib.npz") as file:  # compressed: it is unpacked to a temporary folder
        np.savez_compressed(tmp_path / "calib.npz", **file)
    interrupt(tmp_path, after, wait, trained_folder / "model.pt2", "--calib", tmp_path / "calib.npz")


def test_interrupt_while_measuring_leaves_nothing(heavy: Path, npz: Callable[..., Path], tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    data = npz(
        image=random.normal(size=(40, 4)).astype(np.float32), gyro=random.normal(size=(40, 508)).astype(np.float32)
    )
    interrupt(tmp_path, "search", 0.1, heavy, "--calib", data, "--precision", "int8", "--max-drop", 1)


def test_interrupt_keeps_the_old_bundle(model: Path, tmp_path: Path) -> None:
    old = convert({"model": {"path": model}}, tmp_path / "out.edgemm")
    before = (old.path / "manifest.json").read_bytes()

    class Interrupt:
        def bar(self, step: str, done: int, total: int) -> None: ...
        def status(self, step: str, text: str) -> None: ...

        def step(self, step: str, text: str) -> None:
            if step == "partition":
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert({"model": {"path": model}}, tmp_path / "out.edgemm", force=True, progress=Interrupt())
    assert (old.path / "manifest.json").read_bytes() == before
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "out.edgemm"]


# -- two at once ------------------------------------------------------------------------------------------------


def test_two_converts_to_one_output(model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "output"
    folder.mkdir()
    both = [
        subprocess.Popen(
            command(model, "-o", folder / "out.edgemm"),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        for _ in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 1], said
    loser = said[codes.index(1)]
    assert "something else was written there meanwhile" in loser or "there is a bundle already" in loser
    assert "Traceback" not in "".join(said)
    assert os.listdir(folder) == ["out.edgemm"]
    verify(folder / "out.edgemm", read_manifest(folder / "out.edgemm"))


def test_output_taken_during_the_conversion(model: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.edgemm"

    class Rival:
        def bar(self, step: str, done: int, total: int) -> None: ...
        def status(self, step: str, text: str) -> None: ...

        def step(self, step: str, text: str) -> None:
            if step == "partition" and not output.exists():
                rival = {"model": {"path": model}, "inputs": {"image": {"modality": "rival"}}}
                convert(rival, output)

    with pytest.raises(BundleError, match="there is a bundle already") as caught:
        convert({"model": {"path": model}}, output, progress=Rival())
    assert "--force" in caught.value.hint
    assert read_manifest(output).io.modality_names() == ("rival", "gyro")
    assert sorted(os.listdir(tmp_path)) == ["model.onnx", "out.edgemm"]


# -- the disk ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def small_disk(folder: Path, options: str) -> Iterator[list[str]]:
    """Yields a command prefix under which `folder` is a file system of its own; skips where none may be made."""
    mount = f'mount -t tmpfs -o {options} none {folder} && exec "$@"'
    prefix = ["unshare", "-rm", "sh", "-c", mount, "sh"]
    if (
        not shutil.which("unshare")
        or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("no permission to mount a small file system")
    yield prefix


def run(prefix: list[str], *args: object, **env: str) -> subprocess.CompletedProcess[str]:
    """Runs convert to `out.edgemm` in the folder of its last argument, under `prefix`."""
    return subprocess.run(
        [*prefix, *command(*args)], capture_output=True, text=True, check=False, env=environment(**env)
    )


LIST = 'folder=$1; shift; "$@"; code=$?; ls -A "$folder" | sed "s/^/left: /" >&2; exit $code'


def test_full_disk(heavy: Path, tmp_path: Path) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    with small_disk(folder, "size=32k") as prefix:  # what is left is listed where the disk is seen
        done = run([*prefix, "sh", "-c", LIST, "sh", str(folder)], heavy, "-o", folder / "out.edgemm")
    assert done.returncode == 1, done.stderr
    assert "out.edgemm: no room on the disk: the bundle needs 1,0" in done.stderr
    assert "Traceback" not in done.stderr
    assert "left: " not in done.stderr
    assert done.stdout == ""


@pytest.mark.slow
def test_full_temporary_folder(heavy: Path, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with small_disk(scratch, "size=32k") as prefix:
        done = run(prefix, heavy, "-o", tmp_path / "out.edgemm", TMPDIR=str(scratch))
    assert done.returncode == 1, done.stderr
    assert "no room for " in done.stderr
    assert "TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out.edgemm").exists()


def test_read_only_folder_is_told_before_the_work(model: Path) -> None:
    prefix = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    if prefix and not shutil.which("setpriv"):
        pytest.skip("root may write everywhere, and there is no setpriv to stop being root")
    folder = Path(tempfile.mkdtemp(prefix="edgemm-test-", dir="/tmp"))
    try:
        shutil.copy(model, folder / "model.onnx")
        folder.chmod(0o555)
        done = run(prefix, folder / "model.onnx", "-o", folder / "out.edgemm", PYTHONDONTWRITEBYTECODE="1")
        left = os.listdir(folder)
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)
    assert done.returncode == 1, done.stderr
    error, hint = done.stderr.splitlines()[-2:]
    assert error == f"error: {folder}/out.edgemm: cannot be written: permission denied."
    assert hint.startswith(f"hint:  check that '{folder}' is writable")
    assert not any(line.startswith("load") for line in done.stderr.splitlines())
    assert left == ["model.onnx"]
