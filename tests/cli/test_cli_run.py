from __future__ import annotations

import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from cli_models import LENGTHS, TOTAL, WEIGHT

from edgemm.bundle import MANIFEST

ROOT = Path(__file__).resolve().parents[2]


def arrays(samples: int, seed: int = 0) -> dict[str, np.ndarray]:
    random = np.random.default_rng(seed)
    return {
        "image": random.normal(size=(samples, 4)).astype(np.float32),
        "audio": random.normal(size=(samples, 2)).astype(np.float32),
        "label": random.integers(0, 5, samples),
    }


def expected(data: dict[str, np.ndarray]) -> np.ndarray:
    return np.concatenate([data["image"] @ WEIGHT, data["audio"]], axis=1)


@pytest.mark.parametrize("batch", [1, 4, 100])
def test_outputs_have_one_row_per_sample(edgemm, fusion_bundle: Path, npz, tmp_path: Path, batch: int) -> None:
    data = arrays(7)
    out = tmp_path / "out.npz"
    result = edgemm("run", fusion_bundle, "--data", npz(**data), "-o", out, "--batch", batch)
    assert result.code == 0, result.err
    with np.load(out) as written:
        assert written.files == ["logits"]
        np.testing.assert_allclose(written["logits"], expected(data), rtol=1e-5, atol=1e-6)
    assert "out.npz: 7 samples by cpu-fp32" in result.out
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_json_in_a_process_of_its_own(edgemm_process, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    out = tmp_path / "out.npz"
    result = edgemm_process(
        "run", fusion_bundle, "--data", npz(**arrays(3)), "-o", out, "--json", "--target", "cpu"
    )
    assert result.code == 0, result.err
    report = result.json
    assert report["samples"] == 3
    assert report["outputs"] == {"logits": {"dtype": "float32", "shape": [3, 5]}}
    assert result.err == ""


def test_equal_inputs_give_equal_bytes(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    data = npz(**arrays(3))
    for name in ("a.npz", "b.npz"):
        edgemm("run", fusion_bundle, "--data", data, "-o", tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


def test_state_is_carried_in_the_order_of_the_samples(edgemm, stream_bundle: Path, npz, tmp_path: Path) -> None:
    x = np.arange(10, dtype=np.float32).reshape(5, 2)
    out = tmp_path / "out.npz"
    result = edgemm("run", stream_bundle, "--data", npz(x=x), "-o", out)
    assert result.code == 0, result.err
    with np.load(out) as written:
        assert written.files == ["y"]
        np.testing.assert_array_equal(written["y"], 2 * np.cumsum(x, axis=0))


def test_reset_every(edgemm, stream_bundle: Path, npz, tmp_path: Path) -> None:
    x = np.ones((5, 2), np.float32)
    out = tmp_path / "out.npz"
    result = edgemm("run", stream_bundle, "--data", npz(x=x), "-o", out, "--reset-every", 2)
    assert result.code == 0, result.err
    with np.load(out) as written:
        np.testing.assert_array_equal(written["y"][:, 0], [2, 4, 2, 4, 2])


def test_batch_of_a_stream_is_refused(edgemm, stream_bundle: Path, npz, tmp_path: Path) -> None:
    result = edgemm(
        "run", stream_bundle, "--data", npz(x=np.ones((5, 2), np.float32)), "-o", tmp_path / "o.npz", "--batch", 2
    )
    assert result.code == 1
    assert "--batch 2: this model keeps a state (h)" in result.err


def test_reset_without_a_state_warns(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    result = edgemm("run", fusion_bundle, "--data", npz(**arrays(2)), "-o", tmp_path / "o.npz", "--reset-every", 3)
    assert result.code == 0
    assert "--reset-every 3 does nothing" in result.err


def test_existing_output_stays_unless_forced(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    data, out = npz(**arrays(2)), tmp_path / "out.npz"
    out.write_text("precious")
    result = edgemm("run", fusion_bundle, "--data", data, "-o", out)
    assert result.code == 1
    assert f"error: {out} exists." in result.err
    assert "--force" in result.err
    assert out.read_text() == "precious"
    assert edgemm("run", fusion_bundle, "--data", data, "-o", out, "--force").code == 0
    assert np.load(out)["logits"].shape == (2, 5)


def test_shape_that_changes_names_the_output(edgemm, onnx_file, tmp_path: Path) -> None:
    folder = tmp_path / "shards"
    folder.mkdir()
    np.savez(folder / "a.npz", x=np.ones((2, 3), np.float32))
    np.savez(folder / "b.npz", x=np.ones((2, 5), np.float32))
    out = tmp_path / "out.npz"
    result = edgemm("run", onnx_file(LENGTHS), "--data", folder, "-o", out)
    assert result.code == 1
    assert "output 'y' has shape [5] for sample 2, and [3] for the samples before" in result.err
    assert not out.exists()
    assert [p.name for p in tmp_path.glob(".*")] == []


def test_output_without_rows_needs_batch_one(edgemm, onnx_file, npz, tmp_path: Path) -> None:
    model, data = onnx_file(TOTAL), npz(x=np.ones((4, 3), np.float32))
    result = edgemm("run", model, "--data", data, "-o", tmp_path / "o.npz", "--batch", 2)
    assert result.code == 1
    assert "output 'total' []" in result.err
    assert "--batch 1" in result.err
    assert edgemm("run", model, "--data", data, "-o", tmp_path / "o.npz").code == 0
    np.testing.assert_array_equal(np.load(tmp_path / "o.npz")["total"], [3, 3, 3, 3])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"audio": None}, "no array 'audio'"),
        ({"image": np.ones((7, 4))}, "input 'image': got dtype float64, expected float32"),
        ({"image": np.ones((7, 9), np.float32)}, "data.npz row 0: input 'image': got shape (1, 9)"),
        ({"audio": np.ones((6, 2), np.float32)}, "array 'audio' has 6 samples"),
    ],
)
def test_wrong_data(edgemm, fusion_bundle: Path, npz, tmp_path: Path, change: dict, message: str) -> None:
    data = {name: value for name, value in (arrays(7) | change).items() if value is not None}
    out = tmp_path / "out.npz"
    result = edgemm("run", fusion_bundle, "--data", npz(**data), "-o", out)
    assert result.code == 1
    assert message in result.err
    assert "hint:" in result.err
    assert not out.exists()


def test_no_samples(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    result = edgemm("run", fusion_bundle, "--data", npz(**arrays(0)), "-o", tmp_path / "o.npz")
    assert result.code == 1
    assert "no samples" in result.err


def test_damaged_bundle_is_refused(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    engine = fusion_bundle / "engines/cpu-fp32/image.onnx"
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    result = edgemm("run", fusion_bundle, "--data", npz(**arrays(1)), "-o", tmp_path / "o.npz")
    assert result.code == 1
    assert "was changed" in result.err


def test_unknown_target(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    result = edgemm("run", fusion_bundle, "--data", npz(**arrays(1)), "-o", tmp_path / "o.npz", "--target", "orin")
    assert result.code == 1
    assert "no target 'orin'" in result.err


def test_output_in_a_missing_folder(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    result = edgemm("run", fusion_bundle, "--data", npz(**arrays(1)), "-o", tmp_path / "no" / "o.npz")
    assert result.code == 1
    assert "does not exist" in result.err
    assert f"mkdir -p {tmp_path / 'no'}" in result.err


@pytest.mark.parametrize("limit", [20_000, 110_000])
def test_full_disk_leaves_nothing(fusion_bundle: Path, npz, tmp_path: Path, limit: int) -> None:
    """109,800 bytes of outputs where files end at `limit` bytes: collecting fails, or writing the .npz does."""
    data = npz(**{name: array for name, array in arrays(5_490).items() if name != "label"})
    before = sorted(p.name for p in tmp_path.iterdir())
    program = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from edgemm.cli import main; main()"
    )
    command = [sys.executable, "-c", program, "run", str(fusion_bundle), "--data", str(data)]
    command += ["-o", str(tmp_path / "out.npz"), "--batch", "50"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 1, done.stderr
    assert "error: cannot write" in done.stderr
    assert "File too large" in done.stderr
    assert "nothing was written" in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_memory_does_not_grow_with_the_samples(edgemm, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    """Twenty times the samples (0.8 MB of outputs) may not cost more memory."""
    peaks = []
    for samples in (2_000, 2_000, 40_000):  # the first run pays for imports
        data = npz(f"{samples}.npz", **arrays(samples))
        tracemalloc.start()
        result = edgemm("run", fusion_bundle, "--data", data, "-o", tmp_path / "o.npz", "--batch", 500, "--force")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert result.code == 0, result.err
    assert peaks[2] - peaks[1] < 300_000


def test_interrupt_leaves_nothing(fusion_bundle: Path, npz, tmp_path: Path) -> None:
    data, out = npz(**arrays(400_000)), tmp_path / "out.npz"
    before = sorted(p.name for p in tmp_path.iterdir())
    process = subprocess.Popen(
        [sys.executable, "-m", "edgemm", "run", str(fusion_bundle), "--data", str(data), "-o", str(out)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".edgemm-run-*/0.raw")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted; nothing was written." in err
    assert sorted(p.name for p in tmp_path.iterdir()) == before


def test_no_manifest(edgemm, npz, tmp_path: Path) -> None:
    folder = tmp_path / "empty.edgemm"
    folder.mkdir()
    result = edgemm("run", folder, "--data", npz(**arrays(1)), "-o", tmp_path / "o.npz")
    assert result.code == 1
    assert MANIFEST in result.err


def test_run_and_profile_on_a_device(edgemm_on_device, fusion_bundle: Path, npz, tmp_path: Path) -> None:
    data, out = npz(**arrays(3)), tmp_path / "o.npz"
    result = edgemm_on_device("run", fusion_bundle, "--data", data, "-o", out)
    assert result.code == 0, result.err
    assert np.load(out)["logits"].shape == (3, 5)
    result = edgemm_on_device("profile", fusion_bundle, "--data", data, "--runs", 5)
    assert result.code == 0, result.err
