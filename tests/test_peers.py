"""The benchmark of peers: its table, and one peer from the float model to a row."""

from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # benchmarks/ stands beside the package

from benchmarks.fixtures import Fixture  # noqa: E402
from benchmarks.peers import install, produce, registry, table  # noqa: E402
from benchmarks.peers.child import resident  # noqa: E402
from benchmarks.peers.measure import measure  # noqa: E402

LIMITS = produce.Limits(300.0, 8000.0)


def row(peer: str, fixture: str = "f", **more: Any) -> dict[str, Any]:
    latency = {"1": {"ratio": more.pop("ratio")}} if "ratio" in more else None
    return {"fixture": fixture, "peer": peer, "latency": latency, **more}


ROWS = [
    row("float", ratio=1.0, accuracy=0.90, agreement=1.0),
    row("edgemm", ratio=0.5, accuracy=0.895, agreement=0.99),
    row("quick", ratio=0.2, accuracy=0.70, agreement=0.75),
    row("exact", ratio=0.7, accuracy=0.89, agreement=0.98),
    row("broken", failure="does not run: no kernel"),
]


def test_a_fast_peer_that_loses_accuracy_is_not_the_best_one():
    best = table.best_accurate(ROWS, ["quick", "exact", "broken"], "1", 0.01)
    assert best is not None
    assert best["peer"] == "exact"
    best = table.best_accurate(ROWS, ["quick", "exact", "broken"], "1", 0.5)
    assert best is not None
    assert best["peer"] == "quick"
    assert table.best_accurate(ROWS, ["quick", "broken"], "1", 0.01) is None


def test_without_labels_agreement_decides():
    rows = [r | {"accuracy": None} for r in ROWS]
    assert table.best_accurate(rows, ["exact", "quick"], "1", 0.01) is None
    best = table.best_accurate(rows, ["exact", "quick"], "1", 0.02)
    assert best is not None
    assert best["peer"] == "exact"


def test_the_mean_is_geometric_and_over_what_ran():
    rows = [row("a", ratio=0.5), row("a", "g", ratio=2.0), row("b", ratio=0.3), row("b", "g", failure="x")]
    means = table.geometric_means(rows, "1")
    assert means["a"] == (pytest.approx(1.0), 2)
    assert means["b"] == (pytest.approx(0.3), 1)


def test_the_printed_table_names_every_row_and_why_one_failed():
    console = Console(file=io.StringIO(), width=160)
    table.show(ROWS, ["1"], 0.01, console)
    assert isinstance(console.file, io.StringIO)
    text = console.file.getvalue()
    assert all(r["peer"] in text for r in ROWS)
    assert "does not run: no kernel" in text
    assert "f, 1 threads: edgemm 0.50, best accurate peer 0.70 (exact)" in text


def test_lines_are_counted_without_docstring_comments_and_blanks(tmp_path):
    script = tmp_path / "s.py"
    script.write_text('"""One.\n\nTwo.\n"""\n\n# why\nimport sys\n\nprint(\n    sys.argv\n)\n')
    assert registry.count_lines(script) == 4
    script.write_text('"""One."""\nimport sys\n')
    assert registry.count_lines(script) == 1


def test_every_peer_has_its_script_and_its_requirements():
    folder = registry.FOLDER
    scripts = {p.script for p in registry.PEERS.values()}
    assert scripts == {p.stem for p in (folder / "scripts").glob("*.py")}
    needed = {p.environment for p in registry.PEERS.values()} - {None}
    listed = {p.stem.removesuffix("-nodeps") for p in (folder / "requirements").glob("*.txt")}
    assert needed == listed


def test_what_cannot_be_installed_is_said(tmp_path, monkeypatch):
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "gone.txt").write_text(f"{tmp_path}/no-such-package.whl\n")
    monkeypatch.setattr(install, "FOLDER", tmp_path)
    monkeypatch.setattr(install, "PLACE", tmp_path / "place")
    with pytest.raises(install.InstallError, match=r"not installed: ERROR.*no-such-package"):
        install.python_of("gone")


def test_a_child_is_stopped_at_its_limits_and_its_error_is_read(tmp_path):
    slow = [sys.executable, "-c", "import time; time.sleep(60)"]
    assert produce.run_child(slow, tmp_path, produce.Limits(0.3, 8000)).failure == "stopped after 0 s"
    big = [sys.executable, "-c", "import time; a = b'1' * 300_000_000; time.sleep(60)"]
    assert produce.run_child(big, tmp_path, produce.Limits(60, 150)).failure == "stopped at 150 MB of memory"
    wrong = [sys.executable, "-c", "raise ValueError('no such axis')"]
    assert produce.run_child(wrong, tmp_path, LIMITS).failure == "ValueError: no such axis"


def test_a_child_ends_with_what_runs_it(tmp_path):
    script = str(registry.FOLDER / "child.py")
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
    command = [sys.executable, script, str(tmp_path / "r.json"), "60", "8000", sys.executable, "-c", code]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as runner:
        assert runner.stdout is not None
        inner = int(runner.stdout.readline())
        runner.terminate()
        runner.wait(10)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and resident(inner):
        time.sleep(0.05)
    assert not resident(inner)


def test_peak_memory_is_the_childs_own(tmp_path):
    held = np.ones(60_000_000)  # 480 MB here, which a child of this process would be charged with
    small = produce.run_child([sys.executable, "-S", "-c", "pass"], tmp_path, LIMITS)
    big = produce.run_child([sys.executable, "-S", "-c", "a = b'1' * 200_000_000"], tmp_path, LIMITS)
    assert held.nbytes > 400e6
    assert small.peak_memory_mb is not None
    assert big.peak_memory_mb is not None
    assert small.peak_memory_mb < 60
    assert 190 < big.peak_memory_mb < 260


def test_peak_memory_counts_the_processes_that_a_child_makes(tmp_path):
    holding = "import time; a = b'1' * 150_000_000; time.sleep(1.5)"
    code = f"import subprocess as s, sys; a = b'1' * 150_000_000; s.run([sys.executable, '-S', '-c', {holding!r}])"
    both = produce.run_child([sys.executable, "-S", "-c", code], tmp_path, LIMITS)
    assert both.peak_memory_mb is not None
    assert 290 < both.peak_memory_mb < 400


def test_onnxruntime_quantization_from_float_to_row(trained_folder, tmp_path):
    place = trained_folder
    fixture = Fixture(
        "tiny", place / "model.pt2", place / "calib.npz", place / "eval.npz", label="label", metric="accuracy"
    )
    task = produce.prepare(fixture, tmp_path / "tiny")
    with np.load(task.calib) as calib, np.load(task.labelled) as labelled:
        assert set(calib.files) == {"image", "audio"}
        assert calib["image"].shape == (120, 1, 1, 16, 16)
        np.testing.assert_array_equal(calib["image"][:, 0], labelled["image"])
    made = produce.convert(task, registry.PEERS["ort-minmax"], tmp_path / "tiny" / "ort-minmax", LIMITS)
    assert made.failure is None
    assert made.versions["onnxruntime"]
    assert made.size is not None
    assert made.size < task.model.stat().st_size
    assert made.note == ""
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    produced = {
        "float": produce.Produced(path=task.model),
        "ort-minmax": made,
        "broken": produce.Produced(path=broken),
        "failed": produce.Produced(failure="stopped"),
    }
    rows = measure(task, produced, (1,), 0.2)
    assert rows["float"]["agreement"] == 1.0
    assert rows["float"]["latency"]["1"]["ratio"] == pytest.approx(1.0)
    assert 0.8 < rows["ort-minmax"]["agreement"] <= 1.0
    assert abs(rows["ort-minmax"]["accuracy"] - rows["float"]["accuracy"]) < 0.1
    assert rows["ort-minmax"]["latency"]["1"]["ratio"] > 0
    assert rows["broken"]["failure"].startswith("does not run: ")
    assert "latency" not in rows["broken"]
    assert rows["failed"] == {}


def test_the_command_says_which_fixtures_there_are():
    called = subprocess.run(
        [sys.executable, "-m", "benchmarks.peers", "nothing"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert called.returncode == 2
    assert "no fixture 'nothing' (fixtures: imu, av_digits" in called.stderr
