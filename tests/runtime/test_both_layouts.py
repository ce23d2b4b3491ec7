"""A bundle with one engine for everything and one per stage: which of them runs, and what it gives."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import onnx_graph, random_feed
from hypothesis import HealthCheck, given, settings
from test_cache_property import calls
from test_partition_property import graphs

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, Schedule, StageEntry, Variant, read_manifest, write_bundle
from edgemm.errors import BundleError
from edgemm.graph import ExportedGraph
from edgemm.partition import partition
from edgemm.runtime import FusionSession, SessionOptions, open_session
from edgemm.runtime.cache import OFF

ALL = frozenset({"image", "audio"})
WHOLE, STAGED = "cpu-fp32", "cpu-fp32-staged"


def write_both(graph: ExportedGraph, path: Path) -> Path:
    """Writes a bundle with both layouts of a graph."""
    stages, entries, files = [], [], {}

    def add(name: str, model: Any, covers: tuple[str, ...], inputs: Any, outputs: Any) -> EngineEntry:
        file = f"engines/{name}.onnx"
        files[file] = (
            get_backend("onnxruntime").build(model, "cpu", path.parent / f"{name}.onnx").file.read_bytes()
        )
        names = tuple(i.name for i in inputs), tuple(o.name for o in outputs)
        return EngineEntry(name, covers, file, *names, {"fp32": 1})

    for s in partition(graph).stages:
        stages.append(StageEntry(s.name, s.modalities, s.role, s.inputs, s.outputs, s.nodes, 0))
        entries.append(add(f"stage-{len(entries)}", s.model, (s.name,), s.inputs, s.outputs))
    covers = tuple(s.name for s in stages)
    whole = add("whole", graph.model, covers, graph.io.inputs, graph.io.outputs)
    common = ("cpu", "onnxruntime", "fp32")
    variants = (
        Variant(WHOLE, *common, "whole", (whole,), {"fp32": 1}, 1, reuse=STAGED),
        Variant(STAGED, *common, "staged", tuple(entries), {"fp32": 1}, 1),
    )
    write_bundle(path, Manifest("both", graph.io, tuple(stages), (), variants), files)
    return path


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """Two encoders and a head."""
    graph = onnx_graph(
        """both (float[batch,4] image, float[batch,2] audio) => (float[batch,5] logits)
        { p = MatMul(image, w)  f = Tanh(p)  g = Exp(audio)  j = Concat<axis=1>(f, g)  logits = Sigmoid(j) }""",
        weights={"w": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)},
    )
    return write_both(graph, tmp_path / "both.edgemm")


def feed_of(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {n: rng.normal(size=(1, size)).astype(np.float32) for n, size in (("image", 4), ("audio", 2))}


def bits(outputs: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: value.tobytes() for name, value in outputs.items()}


def test_without_reuse_one_engine_is_opened(bundle: Path) -> None:
    session = open_session(bundle, cache="off")
    assert (session.variant.name, session.variant.layout) == (WHOLE, "whole")
    assert len(session._engines) == 1
    assert session.cache_info().note == OFF
    assert session._direct is not None  # nothing stands in its way


def test_by_its_name_the_staged_one_is_opened_alone(bundle: Path) -> None:
    session = open_session(bundle, variant=STAGED, cache="marks")
    session.run(feed_of(), changed=ALL)
    assert session.cache_info().whole == 0
    assert len(session._engines) == 3


def test_one_engine_runs_what_is_new_and_stages_what_is_not(bundle: Path) -> None:
    session = open_session(bundle, cache="marks")
    whole, staged = (open_session(bundle, variant=name, cache="off") for name in (WHOLE, STAGED))
    assert (session.variant.name, session.choice and session.choice.variant) == (STAGED, WHOLE)
    a, b = feed_of(1), feed_of(2)
    mixed = {**a, "image": b["image"]}
    for feed, changed, runner, ran in (
        (a, ALL, whole, None),
        (b, ALL, whole, None),
        (b, {"image"}, staged, {"image", "audio", "fusion"}),  # nothing of the stages was kept
        (b, {"audio"}, staged, {"audio", "fusion"}),
        (mixed, {"audio"}, staged, {"audio", "fusion"}),
        (mixed, (), staged, set()),
        (a, ALL, whole, None),
        (a, (), staged, {"image", "audio", "fusion"}),
    ):
        before = session.cache_info()
        assert bits(session.run(feed, changed)) == bits(runner.run(feed))
        after = session.cache_info()
        assert after.whole - before.whole == (ran is None)
        names = {e.name: e.stages[0] for e in session.variant.engines}
        assert {names[n] for n in after.ran if after.ran[n] > before.ran[n]} == (ran or set())


def test_content_decides_like_marks(bundle: Path) -> None:
    session = open_session(bundle, cache="content")
    whole, staged = (open_session(bundle, variant=name, cache="off") for name in (WHOLE, STAGED))
    a, b = feed_of(1), feed_of(2)
    for feed, runner in ((a, whole), (b, whole), ({**b, "image": a["image"]}, staged), (b, staged), (a, whole)):
        assert bits(session.run(feed)) == bits(runner.run(feed))
    assert session.cache_info().whole == 3


def test_auto_is_exact_to_one_of_both_whatever_it_decides(bundle: Path) -> None:
    session = open_session(bundle)
    sides = [open_session(bundle, variant=name, cache="off") for name in (WHOLE, STAGED)]
    for call in range(30):
        feed = feed_of(call // 3)
        assert bits(session.run(feed)) in [bits(side.run(feed)) for side in sides]


def test_timed_runs_show_the_stages(bundle: Path) -> None:
    session = open_session(bundle, cache="marks")
    _, seconds = session.run_timed(feed_of())
    assert list(seconds) == [e.name for e in session.variant.engines]
    assert all(value > 0 for value in seconds.values())


def test_streams_and_closing(bundle: Path) -> None:
    session = open_session(bundle, options=SessionOptions(schedule=Schedule("parallel")), threads=2)
    whole = open_session(bundle, variant=WHOLE, cache="off")
    feed = feed_of(5)
    with session.stream(trigger="image", clock=lambda: 1.0) as stream:
        stream.push("audio", feed["audio"][0])
        stream.push("image", feed["image"][0])
        result = stream.infer()
        assert bits(result.outputs) == bits(whole.run(feed))
    session.close()
    with pytest.raises(BundleError, match="closed"):
        session.run(feed)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graph=graphs(), steps=calls())
def test_both_layouts_agree_and_each_call_is_one_of_them(graph: Any, steps: Any) -> None:
    """Also with states, which go from one to the other."""
    modalities = set(graph.io.modality_names())
    with tempfile.TemporaryDirectory() as folder:
        path = write_both(graph, Path(folder) / "both.edgemm")
        session: FusionSession = open_session(path, cache="marks", threads=1)
        if len(session.variant.engines) == 1:
            return
        staged = open_session(path, variant=STAGED, cache="off", threads=1)
        buffers: dict[str, np.ndarray] = {}
        batch = 0
        for number, (changed, _, size, _, _) in enumerate(steps):
            changed = changed & modalities if size == batch else modalities
            fresh = random_feed(graph, batch=size, seed=number)
            if size != batch:
                buffers = {name: fresh[name].copy() for name in graph.io.modalities}
                batch = size
                session.reset_state()
                staged.reset_state()
            for name in changed:
                np.copyto(buffers[name], fresh[name])
            before = session.cache_info().whole
            got, expected = session.run(buffers, changed), staged.run(buffers)
            by_stages = session.cache_info().whole == before
            for name, value in expected.items():
                if by_stages and not graph.io.states:
                    assert got[name].tobytes() == value.tobytes()
                np.testing.assert_allclose(got[name], value, rtol=1e-4, atol=1e-4)
        session.close()
        staged.close()


@pytest.mark.parametrize("reuse", ["nothing", WHOLE])
def test_reuse_that_names_no_other_variant_is_refused(bundle: Path, reuse: str) -> None:
    manifest = read_manifest(bundle)
    whole, staged = manifest.variants
    files: dict[str, bytes | Path] = {name: (bundle / name).read_bytes() for name in manifest.files}
    wrong = replace(manifest, variants=(replace(whole, reuse=reuse), staged), files={})
    with pytest.raises(BundleError, match=f"no variant '{reuse}'"):
        write_bundle(bundle.with_name("wrong.edgemm"), wrong, files)
    several = replace(manifest, variants=(whole, replace(staged, reuse=WHOLE)), files={})
    with pytest.raises(BundleError, match="no variant"):
        write_bundle(bundle.with_name("wrong.edgemm"), several, files)


def test_manifest_says_so(bundle: Path) -> None:
    whole, staged = read_manifest(bundle).variants
    assert (whole.reuse, staged.reuse) == (STAGED, "")
    assert (whole.refuse("why").reuse, staged.schedule) == ("", None)


def test_make_sure_bundles_of_one_layout_are_as_before(fusion_bundle: Path) -> None:
    text = (fusion_bundle / "manifest.json").read_text()
    assert '"reuse"' not in text
    assert '"schedule"' not in text
