"""Foreign models that keep a state: a recording in pieces gives what it gives in one piece."""

from __future__ import annotations

import numpy as np
import pytest
from real_models import Convert, load, source

from edgemm.runtime import open_session

pytestmark = pytest.mark.slow

STATES = {"riann": {"h0": "hn"}, "voice_filter": {"h0": "hN", "c0": "cN"}}
SEQUENCES = {"riann": "input", "voice_filter": "stacked_logmel"}


@pytest.mark.parametrize("name", STATES)
def test_states_are_reported(convert: Convert, name: str) -> None:
    states = convert(name, "fp32").result["states"]
    assert {s["input"]: s["output"] for s in states} == STATES[name]


@pytest.mark.parametrize("name", STATES)
def test_pieces_with_kept_state_equal_the_source_fed_by_hand(convert: Convert, name: str) -> None:
    made, run = convert(name, "fp32"), source(convert(name, "fp32").fixture)
    sample = {n: a[:1] for n, a in load(made.fixture.eval).items()}
    pieces = [np.ascontiguousarray(p) for p in np.array_split(sample[SEQUENCES[name]], 4, axis=1)]
    with open_session(str(made.bundle)) as session:
        for _ in range(2):  # the second round starts from a reset
            session.reset_state()
            states: dict[str, np.ndarray] = {}
            for piece in pieces:
                expected = run(sample | {SEQUENCES[name]: piece} | states)
                states = {i: expected[o] for i, o in STATES[name].items()}
                for output, array in session.run(sample | {SEQUENCES[name]: piece}).items():
                    np.testing.assert_allclose(array, expected[output], rtol=0, atol=1e-5)


def test_recording_in_pieces_gives_what_it_gives_in_one(convert: Convert) -> None:
    made = convert("riann", "fp32")
    motion = load(made.fixture.eval)["input"][:1]
    with open_session(str(made.bundle)) as session:
        pieces = [np.ascontiguousarray(p) for p in np.array_split(motion, 5, axis=1)]
        joined = np.concatenate([session.run({"input": piece})["output"] for piece in pieces], axis=1)
        session.reset_state()
        whole = session.run({"input": motion})["output"]
    np.testing.assert_allclose(joined, whole, rtol=0, atol=1e-5)


def test_without_a_reset_the_state_of_the_last_call_counts(convert: Convert) -> None:
    made = convert("riann", "fp32")
    sample = {"input": load(made.fixture.eval)["input"][:1]}
    with open_session(str(made.bundle)) as session:
        first = session.run(sample)["output"].copy()
        again = session.run(sample)["output"].copy()
        session.reset_state()
        fresh = session.run(sample)["output"]
    assert np.abs(first - again).max() > 1e-3
    np.testing.assert_array_equal(first, fresh)


def test_state_in_the_feed_overrides_the_kept_one(convert: Convert) -> None:
    made = convert("riann", "fp32")
    sample = {"input": load(made.fixture.eval)["input"][:1]}
    zeros = {"h0": np.zeros((2, 1, 1, 200), np.float32)}
    with open_session(str(made.bundle)) as session:
        first = session.run(sample)["output"].copy()
        np.testing.assert_array_equal(session.run(sample | zeros)["output"], first)
