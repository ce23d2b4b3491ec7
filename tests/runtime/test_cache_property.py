"""Random multimodal graphs, random changes: what a session reuses never changes a bit of what it returns."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from builders import random_feed, run_whole
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_partition_property import graphs

from edgemm.backends import get_backend
from edgemm.bundle import EngineEntry, Manifest, StageEntry, Variant
from edgemm.graph import ExportedGraph
from edgemm.partition import partition
from edgemm.runtime import FusionSession
from edgemm.runtime.cache import CACHE_BYTES, CacheMode
from edgemm.runtime.opening import open_variant


def open_staged(graph: ExportedGraph, folder: Path, *modes: CacheMode) -> list[FusionSession]:
    """Returns a session of one engine per stage, once for each mode."""
    stages, entries = [], []
    for number, stage in enumerate(partition(graph).stages):
        file = f"{number}.onnx"
        get_backend("onnxruntime").build(stage.model, "cpu", folder / file)
        stages.append(
            StageEntry(stage.name, stage.modalities, stage.role, stage.inputs, stage.outputs, stage.nodes, 0)
        )
        names = tuple(i.name for i in stage.inputs), tuple(o.name for o in stage.outputs)
        entries.append(EngineEntry(stage.name, (stage.name,), file, *names, {"fp32": 1}))
    variant = Variant("cpu-fp32", "cpu", "onnxruntime", "fp32", "staged", tuple(entries), {"fp32": 1}, 0)
    manifest = Manifest("random", graph.io, tuple(stages), (), (variant,))
    sessions = [open_variant(folder, manifest, variant, threads=1) for _ in modes]
    for session, mode in zip(sessions, modes, strict=True):
        session.use_cache(mode)
    return sessions


@st.composite
def calls(draw):
    """Returns what happens between calls: modalities that change, marks beyond these, batch, reset, bytes."""
    subsets = st.frozensets(st.sampled_from(("image", "audio", "text")))
    step = st.tuples(
        subsets,
        st.none() | subsets,
        st.sampled_from((1, 1, 1, 3)),
        st.sampled_from((False, False, False, True)),
        st.sampled_from((CACHE_BYTES, CACHE_BYTES, 48, 200)),
    )
    return draw(st.lists(step, min_size=2, max_size=10))


def play(graph, steps, sessions):
    """Yields number, changed modalities and feed of each step, of which an app refills its buffers.

    The sessions forget their states where a step says so, and at another batch size.
    """
    modalities = set(graph.io.modality_names())
    buffers: dict[str, np.ndarray] = {}
    batch = 0
    for number, (changed, _, size, reset, _) in enumerate(steps):
        changed = changed & modalities if size == batch else modalities
        fresh = random_feed(graph, batch=size, seed=number)
        if size != batch:
            buffers = {name: fresh[name].copy() for name in graph.io.modalities}
            reset, batch = True, size
        for name in changed:
            np.copyto(buffers[name], fresh[name])
        if reset:
            for session in sessions:
                session.reset_state()
        yield number, changed, buffers


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(graph=graphs(), steps=calls(), writes=st.booleans())
def test_cached_results_are_those_of_full_runs(graph, steps, writes):
    modalities = set(graph.io.modality_names())
    with tempfile.TemporaryDirectory() as folder:
        full, content, marks = open_staged(graph, Path(folder), "off", "content", "marks")
        content.use_cache("content", steps[0][4])
        for number, changed, buffers in play(graph, steps, (full, content, marks)):
            extra = steps[number][1]
            expected = full.run(buffers)
            marked = changed | (extra & modalities if extra else set())
            given_marks = marked if extra is not None else None
            for session, said in ((content, given_marks), (marks, marked if number else None)):
                got = session.run(buffers, said)
                assert got.keys() == expected.keys()
                for name, array in expected.items():
                    assert got[name].tobytes() == array.tobytes(), (number, name)
                    if writes:
                        got[name].fill(-7)
                for name, array in full.state.items():
                    assert session.state[name].tobytes() == array.tobytes(), (number, name)
            assert content.cache_info().bytes <= steps[0][4] or len(content.variant.engines) == 1
        if not graph.io.states:
            whole = run_whole(graph, buffers)
            for name, array in expected.items():
                np.testing.assert_allclose(array, whole[name], rtol=2e-6, atol=2e-6)
        for session in (full, content, marks):
            session.close()
