"""Sessions and streams on a bundle whose steps run on the host."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgemm.bundle import read_manifest, write_bundle
from edgemm.errors import BundleError, DataError
from edgemm.preprocess import parse
from edgemm.preprocess.front import InputSteps
from edgemm.runtime import FusionSession, open_session
from edgemm.tensors import BATCH, TensorSpec

AUDIO = np.arange(12, dtype=np.float32).reshape(3, 2, 2) / 10
CAMERA = np.array([[0, 50, 100, 150], [255, 200, 3, 4], [9, 8, 7, 6]], np.uint8)
WAY = InputSteps(
    "image",
    TensorSpec("camera", "uint8", (BATCH, 4)),
    parse([{"normalize": {"mean": [100], "std": [50, 40, 30, 20]}}]),
)


def with_steps(bundle: Path, *ways: Mapping[str, Any]) -> Path:
    """Writes the bundle again with steps in front of inputs."""
    manifest = read_manifest(bundle)
    files = {name: (bundle / name).read_bytes() for name in manifest.files}
    path = bundle.with_suffix(".raw")
    write_bundle(path, replace(manifest, preprocess=ways), files)
    return path


@pytest.fixture
def raw_bundle(fusion_bundle: Path) -> Path:
    """`fusion_bundle` that takes a camera's bytes for its image."""
    return with_steps(fusion_bundle, WAY.to_json())


def prepared() -> np.ndarray:
    return (CAMERA.astype(np.float32) - 100) / np.array([50, 40, 30, 20], np.float32)


def want(fusion_bundle: Path, rows: slice = slice(None)) -> dict[str, np.ndarray]:
    with open_session(fusion_bundle) as session:
        return session.run({"image": prepared()[rows], "audio": AUDIO[rows]})


def check(got: Mapping[str, np.ndarray], wanted: Mapping[str, np.ndarray]) -> None:
    assert got.keys() == wanted.keys()
    for name, values in wanted.items():
        np.testing.assert_array_equal(got[name], values)


@pytest.mark.parametrize("cache", ["auto", "content", "marks", "off"])
def test_every_way_to_run(raw_bundle: Path, fusion_bundle: Path, cache: Any) -> None:
    wanted, feed = want(fusion_bundle), {"camera": CAMERA, "audio": AUDIO}
    with open_session(raw_bundle, cache=cache) as session:
        assert [str(i) for i in session.io.feed_inputs] == ["camera[batch,4] uint8", "audio[batch,2,2] float32"]
        assert session.io.modalities["camera"] == "image"
        for _ in range(3):
            check(session.run(feed), wanted)
        check(session.run_timed(feed)[0], wanted)
        check(session.run_spans(feed)[0], wanted)
        check(
            session.run({**feed, "camera": CAMERA + 1}, changed=["image"]),
            session.run({**feed, "camera": CAMERA + 1}),
        )
        check(session.run(feed, changed=["image", "audio"]), wanted)


def test_streams_take_raw_samples(raw_bundle: Path, fusion_bundle: Path) -> None:
    wanted = want(fusion_bundle, slice(0, 1))
    with open_session(raw_bundle) as session, session.stream() as stream:
        frame = CAMERA[0].copy()
        stream.push("image", frame)
        frame[:] = 0  # it was taken by copy
        stream.push("audio", AUDIO[0])
        check(stream.infer().outputs, wanted)
        with pytest.raises(DataError, match="input 'camera': got dtype float32, expected uint8"):
            stream.push("image", prepared()[0])


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"camera": prepared(), "audio": AUDIO}, "input 'camera': got dtype float32, expected uint8"),
        ({"image": prepared(), "audio": AUDIO}, "no input 'image'"),
        ({"audio": AUDIO}, "input 'camera' is missing"),
        ({"camera": CAMERA[:2], "audio": AUDIO}, "axis 0"),
        ({"camera": CAMERA[:, :3], "audio": AUDIO}, "got shape"),
    ],
)
def test_refuses_what_is_not_raw(raw_bundle: Path, feed: dict[str, np.ndarray], message: str) -> None:
    with open_session(raw_bundle) as session:
        session.run({"camera": CAMERA, "audio": AUDIO})
        with pytest.raises(DataError, match=message):
            session.run(feed)


def test_swaps_with_a_bundle_that_takes_the_same(raw_bundle: Path, fusion_bundle: Path, tmp_path: Path) -> None:
    feed, wanted = {"camera": CAMERA, "audio": AUDIO}, want(fusion_bundle)
    with open_session(raw_bundle) as session:
        check(session.run(feed), wanted)
        session.swap(raw_bundle)
        check(session.run(feed), wanted)
        with pytest.raises(BundleError, match="camera"):
            session.swap(fusion_bundle)
        check(session.run(feed), wanted)


@pytest.mark.parametrize(
    ("way", "message"),
    [
        (WAY.to_json() | {"steps": [{"warp": {}}]}, "there is no step 'warp'"),
        (WAY.to_json() | {"input": "lidar"}, "does not fit the model: no input 'lidar'"),
        (WAY.to_json() | {"steps": []}, "preprocess gives uint8"),
        ({"input": "image"}, "malformed"),
    ],
)
def test_refuses_a_damaged_manifest(fusion_bundle: Path, way: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        open_session(with_steps(fusion_bundle, way))


def test_reads_no_file_outside_of_the_bundle(fusion_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    tokens = [{"tokenize": {"file": "../tokenizer.json", "length": 4}}]
    way = WAY.to_json() | {"raw": {"name": "text", "dtype": "str", "shape": [BATCH]}, "steps": tokens}
    with pytest.raises(BundleError, match=r"reads '\.\./tokenizer.json', no file of the bundle"):
        open_session(with_steps(fusion_bundle, way))


def test_is_made_otherwise_without_steps(fusion_bundle: Path) -> None:
    session: FusionSession
    with open_session(fusion_bundle) as session:
        assert session.raw is None
