"""Bundles that were made elsewhere, on a real GPU: every variant against the CPU's outputs, and its times.

Bundles are `*.edgemm` in the folder `EDGEMM_GPU_BUNDLES`, by default `build/gpu`; samples of `NAME.edgemm` are in
`NAME.npz` beside it (first axis: sample), else made up. What was measured is added to `report.jsonl` there.
"""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.bundle import read_manifest
from edgemm.errors import UnsupportedDeviceError
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.cuda import Gpu
from edgemm.runtime.latency import measure
from edgemm.tensors import IOSpec, TensorSpec

pytestmark = pytest.mark.gpu

FOLDER = Path(os.environ.get("EDGEMM_GPU_BUNDLES", "build/gpu"))
BUNDLES = sorted(FOLDER.glob("*.edgemm"))
SAMPLES = 32
COSINE = {"fp32": 0.9999, "fp16": 0.999, "bf16": 0.99, "int8": 0.98}
"""Least agreement with the CPU's outputs, by precision; others need 0.97."""


def feeds_of(bundle: Path, io: IOSpec) -> list[dict[str, np.ndarray]]:
    """Returns samples one by one, each as a batch that the model takes."""
    size = io.batch if isinstance(io.batch, int) else 1
    file = bundle.with_suffix(".npz")
    if not file.is_file():
        rng = np.random.default_rng(0)
        return [{i.name: made_up(i, size, rng) for i in io.feed_inputs} for _ in range(SAMPLES)]
    with np.load(file, allow_pickle=False) as data:
        arrays = {i.name: np.ascontiguousarray(data[i.name], i.dtype) for i in io.feed_inputs}
    count = min(SAMPLES, min(map(len, arrays.values())) // size)
    return [{n: a[k * size : (k + 1) * size] for n, a in arrays.items()} for k in range(count)]


def made_up(spec: TensorSpec, size: int, rng: np.random.Generator) -> np.ndarray:
    """Numbers around 0, ones for what is no float."""
    shape = [d if isinstance(d, int) else 16 if axis else size for axis, d in enumerate(spec.shape)]
    return (
        rng.normal(size=shape).astype(spec.dtype) if spec.dtype.startswith("float") else np.ones(shape, spec.dtype)
    )


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    x, y = a.astype(np.float64).ravel(), b.astype(np.float64).ravel()
    norm = float(np.linalg.norm(x) * np.linalg.norm(y))
    return float(x @ y) / norm if norm else float(np.array_equal(x, y))


def compared(reference: FusionSession, session: FusionSession, feeds: list[dict[str, np.ndarray]]) -> float:
    """Returns the least cosine of two sessions' outputs, each sample from zero states."""
    least = 1.0
    for feed in feeds:
        reference.reset_state()
        session.reset_state()
        want, got = reference.run(feed), session.run(feed)
        least = min([least, *(cosine(got[n], want[n]) for n in want if want[n].dtype.kind == "f")])
    return least


@pytest.mark.skipif(not BUNDLES, reason=f"no bundles in {FOLDER}: see docs/hardware.md")
@pytest.mark.parametrize("bundle", BUNDLES, ids=lambda b: b.stem)
def test_variants_agree_with_the_cpu(bundle: Path, gpu: Gpu) -> None:
    rows: list[dict[str, Any]] = []
    with open_session(bundle, target="cpu") as reference:
        feeds = feeds_of(bundle, reference.io)
        for variant in read_manifest(bundle).shipped:
            if variant.target == "cpu":
                continue
            row: dict[str, Any] = {"gpu": gpu.name, "bundle": bundle.name, "variant": variant.name}
            rows.append(row)
            try:
                session = open_session(bundle, variant=variant.name, build=True)
            except UnsupportedDeviceError as error:  # for another GPU than this one
                row["not_here"] = str(error)
                continue
            with session:
                row["cosine"] = compared(reference, session, feeds)
                row["expected"] = COSINE.get(variant.precision, 0.97)
                calls = {"cpu": partial(reference.run, feeds[0]), "gpu": partial(session.run, feeds[0])}
                taken = measure(calls, seconds=3.0)
                row.update({f"{name}_ms": round(1000 * found.median, 3) for name, found in taken.items()})
                row["choice"] = session.choice.lines() if session.choice else []
    with (FOLDER / "report.jsonl").open("a") as report:
        for row in rows:
            print("\n" + json.dumps(row))
            report.write(json.dumps(row) + "\n")
    measured = [row for row in rows if "cosine" in row]
    assert measured, "no variant of the bundle runs on this GPU"
    for row in measured:
        assert row["cosine"] >= row["expected"], row
