"""Makes every model that is compared: the float model, the calibration file, the results, the bundle."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.fixtures import Fixture
from benchmarks.peers.install import InstallError, home_of, python_of, versions_of
from benchmarks.peers.registry import Peer, count_lines
from benchmarks.plain import PlainFloat, export_plain
from edgemm.data import make_feed, open_samples
from edgemm.export.model import ModelSource, load_model
from edgemm.export.torch_onnx import ExportRequest, export_model
from edgemm.tensors import IOSpec, StateSpec

SAMPLES = 200
"""Most calibration samples that anybody gets."""


@dataclass(frozen=True, slots=True)
class Task:
    """A fixture as every peer sees it.

    Attributes:
        fixture: Model and data.
        io: The model's signature.
        model: The float model as torch.onnx.export writes it: inputs named as in `io`, outputs in its order.
        calib: `.npz` of whole feeds, states included: sample `i` of every array is one call. No labels.
        labelled: The same samples with their labels, as edgemm takes them.
    """

    fixture: Fixture
    io: IOSpec
    model: Path
    calib: Path
    labelled: Path


@dataclass(frozen=True, slots=True)
class Limits:
    """What a conversion may take."""

    seconds: float
    megabytes: float


@dataclass(frozen=True, slots=True)
class Produced:
    """What came of one conversion.

    Attributes:
        path: `.onnx`, `.xml` or a bundle; None after a failure.
        size: Bytes of what is loaded on the device.
        seconds: Wall clock of the whole process.
        peak_memory_mb: Its largest resident memory.
        lines: Lines that the user writes.
        versions: Package -> version.
        failure: Why there is no result.
        note: What else is worth a word.
    """

    path: Path | None = None
    size: int | None = None
    seconds: float | None = None
    peak_memory_mb: float | None = None
    lines: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    failure: str | None = None
    note: str = ""


def prepare(fixture: Fixture, folder: Path) -> Task:
    """Writes the float model and the calibration files of a fixture to `folder`, which is emptied."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    options = fixture.options
    given = {o: options[at + 1] for at, o in enumerate(options) if o == "--factory"}
    states = tuple(StateSpec(*options[at + 1].split("=")) for at, o in enumerate(options) if o == "--state")
    samples = open_samples(str(fixture.calib))
    loaded = load_model(ModelSource(fixture.model, given.get("--factory"), False))
    io = export_model(loaded, ExportRequest(states=states), samples, lambda text: None).graph.io
    task = Task(fixture, io, folder / "float.onnx", folder / "calib.npz", folder / "labelled.npz")
    first = make_feed(io, [samples[0]])
    plain = fixture.model.read_bytes() if fixture.model.suffix == ".onnx" else export_plain(fixture, io, first)
    task.model.write_bytes(plain)
    _write_calibration(task, first)
    return task


def convert(task: Task, peer: Peer, folder: Path, limits: Limits) -> Produced:
    """Returns what a peer made of the float model; a failure is a result with its reason."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        python = python_of(peer.environment)
        versions = versions_of(python, peer.packages)
    except (InstallError, subprocess.CalledProcessError) as error:
        return Produced(failure=str(error))
    arguments = [str(task.model.absolute()), str(task.calib.absolute()), str(folder.absolute()), *peer.arguments]
    produced = run_child([str(python), str(peer.path), *arguments], folder, limits, home_of(python))
    produced = replace(produced, lines=count_lines(peer.path), versions=versions)
    if produced.failure:
        return produced
    told = [line for line in (folder / "stdout.txt").read_text().splitlines() if line.startswith("note: ")]
    produced = replace(produced, note="; ".join(line.removeprefix("note: ") for line in told))
    found = [p for p in (*folder.glob("model.xml"), *folder.glob("**/model.onnx")) if p.is_file()]
    if not found:
        return replace(produced, failure="no model was written")
    loaded = [found[0], found[0].with_suffix(".bin"), *found[0].parent.glob("*data")]
    return replace(produced, path=found[0], size=sum(p.stat().st_size for p in set(loaded) if p.is_file()))


def convert_edgemm(task: Task, folder: Path, limits: Limits, options: Sequence[str] = ()) -> Produced:
    """Returns the bundle of one `edgemm convert` with `options` and nothing in its cache; it takes one line."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    bundle = folder / "model.edgemm"
    fixture = replace(task.fixture, calib=task.labelled.absolute())
    command = fixture.convert_command(bundle.absolute(), *options)
    produced = run_child(command, folder, limits, more={"XDG_CACHE_HOME": str(folder.absolute())})
    produced = replace(produced, lines=1)
    if produced.failure:
        return produced
    told = json.loads((folder / "stdout.txt").read_text())
    shipped = next(v for v in told["variants"] if v["refused"] is None)
    return replace(
        produced, path=bundle, size=shipped["size_bytes"], note=f"{shipped['name']}, {shipped['layout']}"
    )


def run_child(
    command: Sequence[str],
    folder: Path,
    limits: Limits,
    home: Path | None = None,
    more: Mapping[str, str] | None = None,
) -> Produced:
    """Returns time and peak memory of a command; what it prints is kept in `folder`.

    Args:
        command: What to run.
        folder: Where its output is kept.
        limits: When it is stopped.
        home: Its home folder; it then runs in `folder`. None: that of the user, in the current one.
        more: Further environment variables.
    """
    report = folder / "child.json"
    launcher = [sys.executable, "-S", str(Path(__file__).with_name("child.py")), str(report.absolute())]
    environment = os.environ | {"OLIVE_DISABLE_TELEMETRY": "1", **(more or {})}
    if home is not None:  # and a folder of its own: some packages take names in the current one for paths
        environment |= {"HOME": str(home)}
    with (folder / "stdout.txt").open("w") as out, (folder / "stderr.txt").open("w") as err:
        bounds = [str(limits.seconds), str(limits.megabytes)]
        place = folder if home is not None else None
        subprocess.run(
            [*launcher, *bounds, *command], stdout=out, stderr=err, env=environment, cwd=place, check=True
        )
    taken: dict[str, Any] = json.loads(report.read_text())
    failure = taken["stopped"]
    if failure is None and taken["code"]:
        failure = _reason((folder / "stderr.txt").read_text(), taken["code"])
    return Produced(seconds=taken["seconds"], peak_memory_mb=taken["peak_memory_mb"], failure=failure)


def _reason(text: str, code: int) -> str:
    """Returns the line of an error that says what went wrong: the last one of a traceback."""
    if code < 0:
        return f"ended by signal {-code}"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    named = [line for line in lines if line.split(":")[0].endswith(("Error", "Exception", "Fail"))]
    return (named or lines or [f"exit code {code}"])[-1][:300]


def _write_calibration(task: Task, first: Mapping[str, np.ndarray]) -> None:
    """Writes at most `SAMPLES` samples, spread evenly, in order from the start where the model has states."""
    samples = open_samples(str(task.fixture.calib))
    count = min(SAMPLES, len(samples))
    spread = range(count) if task.io.states else np.linspace(0, len(samples) - 1, count).round().astype(int)
    chosen = [samples[int(at)] for at in spread]
    np.savez(task.labelled, **{name: np.stack([s[name] for s in chosen]) for name in chosen[0]})
    plain = PlainFloat.open(replace(task.fixture, model=task.model), task.io, first)
    feeds = []
    for sample in chosen:
        feed = make_feed(task.io, [sample])
        feeds.append({**plain.states, **feed})
        if task.io.states:
            plain.run(feed)
    np.savez(task.calib, **{name: np.stack([f[name] for f in feeds]) for name in feeds[0]})
