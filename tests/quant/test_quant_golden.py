"""The plans of four small fusion models, as text: a change of the rules shows here.

`PYTHONPATH=tests:tests/quant python tests/quant/test_quant_golden.py` writes the files again.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from repair_models import case, rows_of

from edgemm.quant.apply import apply_plan
from edgemm.quant.chain import OpenStage
from edgemm.quant.joins import join_warnings
from edgemm.quant.placement import alternatives, plan_quantization

GOLDEN = Path(__file__).parents[1] / "golden" / "plans"


def model(text, shapes, inputs, sizes=None):
    """A case with random weights of these shapes and random inputs, each `sizes` times as large."""
    rng = np.random.default_rng(0)
    weights = {n: (rng.normal(size=s) / np.sqrt(s[-1] if len(s) == 1 else s[0])).astype(np.float32)
               for n, s in shapes.items()}  # fmt: skip
    feed = {n: (rng.normal(size=(16, *s)) * (sizes or {}).get(n, 1)).astype(np.float32) for n, s in inputs.items()}
    return case(text, weights, rows_of(feed), feed)


def concat():
    """Two encoders, one with 50 times the range of the other, concatenated; then a hidden layer."""
    text = """g (float[batch,3,16,16] image, float[batch,64] audio) => (float[batch,10] y) {
        c1 = Conv<pads=[1,1,1,1]>(image, wc1, bc1) r1 = Relu(c1)
        m1 = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r1)
        c2 = Conv<pads=[1,1,1,1]>(m1, wc2, bc2) r2 = Relu(c2) g2 = GlobalAveragePool(r2) f = Flatten(g2)
        a1 = Gemm(audio, wa, ba) a = Relu(a1)
        j = Concat<axis=1>(f, a) h1 = Gemm(j, wh, bh) h = Relu(h1) y = Gemm(h, wo, bo) }"""
    shapes = {
        "wc1": (32, 3, 3, 3), "bc1": (32,), "wc2": (64, 32, 3, 3), "bc2": (64,), "wa": (64, 1088), "ba": (1088,),
        "wh": (1152, 96), "bh": (96,), "wo": (96, 10), "bo": (10,),
    }  # fmt: skip
    return model(text, shapes, {"image": (3, 16, 16), "audio": (64,)}, {"audio": 50})


def attention():
    """Text attends to an image; a residual, a LayerNorm, a feed-forward part."""
    text = """g (float[batch,6,64] text, float[batch,9,64] image) => (float[batch,6,64] y) {
        q = MatMul(text, wq) k = MatMul(image, wk) v = MatMul(image, wv) t = Transpose<perm=[0,2,1]>(k)
        d = MatMul(q, t) s = Mul(d, scale) p = Softmax(s) o = MatMul(p, v) z = MatMul(o, wo) r = Add(text, z)
        n = LayerNormalization(r, gain, shift) u = MatMul(n, w1) b = Add(u, b1) e = Gelu(b)
        w = MatMul(e, w2) y = Add(w, r) }"""
    shapes = {n: (64, 192) for n in ("wq", "wk", "wv")} | {"wo": (192, 64), "w1": (64, 256), "w2": (256, 64)}
    shapes |= {"scale": (1,), "gain": (64,), "shift": (64,), "b1": (256,)}
    return model(text, shapes, {"text": (6, 64), "image": (9, 64)})


def gru():
    """A recurrent encoder beside a linear one, gated and added."""
    text = """g (float[batch,12,32] imu, float[batch,128] image) => (float[batch,192] y) {
        x = Transpose<perm=[1,0,2]>(imu) all, last = GRU<hidden_size=64>(x, w, r, b)
        axes = Constant<value_ints=[0]>() l = Squeeze(last, axes) a = MatMul(l, wa)
        i = MatMul(image, wi) g1 = Sigmoid(i) m = Mul(a, g1) s = Add(m, i) y = MatMul(s, wy) }"""
    shapes = {"w": (1, 192, 32), "r": (1, 192, 64), "b": (1, 384), "wa": (64, 192), "wi": (128, 192)}
    return model(text, shapes | {"wy": (192, 192)}, {"imu": (12, 32), "image": (128,)})


def three_modalities():
    """Two modalities meet first, the third later; one of them is a table of tokens."""
    text = """g (float[batch,48] imu, float[batch,16,40] audio, int64[batch,5] tokens) => (float[batch,64] y) {
        e = Gather(table, tokens) axes = Constant<value_ints=[1]>() t = ReduceMean<keepdims=0>(e, axes)
        c = Conv<pads=[1,1]>(audio, wc, bc) r = Relu(c) last = Constant<value_ints=[2]>()
        a = ReduceMean<keepdims=0>(r, last) i1 = MatMul(imu, wi) i = Relu(i1)
        j = Concat<axis=1>(i, a) h1 = MatMul(j, wj) h = Relu(h1) k = Concat<axis=-1>(h, t) y = MatMul(k, wk) }"""
    shapes = {
        "table": (100, 64), "wc": (64, 16, 3), "bc": (64,), "wi": (48, 192), "wj": (256, 64), "wk": (128, 64),
    }  # fmt: skip
    small = model(text, shapes, {"imu": (48,), "audio": (16, 40), "tokens": (5,)}, {"imu": 2})
    tokens = np.random.default_rng(1).integers(0, 100, (16, 5))
    return case(text, {n: v.const_value.numpy() for n, v in small.graph.model.graph.initializers.items()},
                [s | {"tokens": t} for s, t in zip(small.samples, tokens, strict=True)],
                small.test | {"tokens": tokens})  # fmt: skip


MODELS = [concat, attention, gru, three_modalities]


def described(build):
    """Decisions, alternatives and warnings of a model, without what depends on the machine."""
    small = build()
    table = small.table()
    plan = plan_quantization(small.stages, table)
    listed = alternatives(small.stages, table)
    return {
        "decisions": plan.to_json()["decisions"],
        "alternatives": {f"{stage}/{node}": list(found) for (stage, node), found in listed.items()},
        "warnings": join_warnings(small.stages, table),
    }


@pytest.mark.parametrize("build", MODELS, ids=lambda m: m.__name__)
def test_plans_are_as_written_down(build):
    assert described(build) == json.loads((GOLDEN / f"{build.__name__}.json").read_text())


@pytest.mark.parametrize("build", MODELS, ids=lambda m: m.__name__)
def test_the_plans_run(build):
    small = build()
    table = small.table()
    plan = plan_quantization(small.stages, table)
    for stage in small.stages.stages:
        OpenStage.open(stage.name, apply_plan(stage, plan, table))
    reference, got = small.run(), small.run(plan=plan, table=table)
    assert np.linalg.norm(reference - got) < 0.05 * np.linalg.norm(reference)


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for build in MODELS:
        (GOLDEN / f"{build.__name__}.json").write_text(
            json.dumps(described(build), indent=1, ensure_ascii=False) + "\n"
        )
