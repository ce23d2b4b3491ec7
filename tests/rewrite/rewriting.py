"""Rewrites a graph and compares it with what it was, for every test of a rule."""

from __future__ import annotations

import numpy as np
from builders import DISABLED, run_whole

from edgemm.graph import digest
from edgemm.rewrite import rewrite


def rewrite_and_compare(graph, *feeds, tolerance=0.0):
    """Returns the rewritten graph and the log, after comparing both graphs and their signatures."""
    before = digest(graph.model)
    result, log = rewrite(graph)
    assert digest(graph.model) == before
    assert [str(v.shape) for v in result.model.graph.inputs] == [str(v.shape) for v in graph.model.graph.inputs]
    assert [v.name for v in result.model.graph.outputs] == [v.name for v in graph.model.graph.outputs]
    assert result.io == graph.io
    for feed in feeds:
        expected, got = run_whole(graph, feed, DISABLED), run_whole(result, feed, DISABLED)
        for name, array in expected.items():
            np.testing.assert_allclose(got[name], array, rtol=tolerance, atol=tolerance, err_msg=name)
            assert got[name].dtype == array.dtype
    assert digest(graph.model) == before  # serializing the copy names tensors that both share
    return result, dict(line.split(": ") for line in log)


def ops(graph):
    return [n.op_type for n in graph.model.graph]


def weights(**shapes):
    rng = np.random.default_rng(0)
    return {n: (np.abs(rng.standard_normal(s)) + 0.1).astype(np.float32) for n, s in shapes.items()}
