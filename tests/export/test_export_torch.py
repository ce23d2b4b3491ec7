"""Torch models to ONNX: what stays open, what ends fixed and why, and that the numbers are torch's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from export_nets import (
    Cached,
    CrossAttention,
    FlattensByHand,
    LoopsOverTime,
    LstmOverTime,
    Nested,
    OneAtATime,
    SeesNeighbours,
    StatefulGru,
    TwoBranch,
    array,
    export,
    save,
    tensor,
)
from torch import nn
from torch.export import Dim

from edgemm.errors import DataError, ExportError, ParityError, RecipeError
from edgemm.export.batching import Tolerance
from edgemm.export.feeds import Feeds
from edgemm.export.model import load_model
from edgemm.export.program import build_program
from edgemm.export.torch_onnx import ExportResult
from edgemm.export.verify import OrtRunner, check_parity
from edgemm.graph import digest, serialize
from edgemm.tensors import BATCH, StateSpec, TensorSpec

IMAGE_AUDIO = [
    {"image": array(1, 8, 8, seed=i), "audio": array(5, seed=i), "label": np.int64(i)} for i in range(5)
]
SENTENCES = [
    {"tokens": array(5 + i % 3, 6, seed=i), "image": array(4, seed=i), "tokens_mask": np.arange(5 + i % 3) > 3}
    for i in range(6)
]


def run(result: ExportResult, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(serialize(result.graph.model), providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, feed), strict=True))


def reasons(result: ExportResult) -> str:
    return " ".join(f.reason for f in result.dynamic.fixed)


@pytest.mark.parametrize("how", ["pt2", "torchscript", "pickle"])
def test_two_branches_keep_their_names_and_an_open_batch(how: str, tmp_path: Path) -> None:
    model = TwoBranch()
    result = export(save(model, (tensor(1, 1, 8, 8), tensor(1, 5)), tmp_path, how), IMAGE_AUDIO)
    io = result.graph.io
    assert [str(i) for i in io.inputs] == ["image[batch,1,8,8] float32", "audio[batch,5] float32"]
    assert [str(o) for o in io.outputs] == ["logits[batch,3] float32", "embedding[batch,16] float32"]
    assert io.batch == BATCH
    assert dict(io.modalities) == {"image": "image", "audio": "audio"}
    assert [d.checked for d in result.dynamic.dynamic] == [(1, 2, 5), (1, 2, 5)]
    assert result.dynamic.fixed == ()
    assert result.parity.max_abs < 1e-5
    assert result.parity.outputs["logits"].samples == 5
    feed = {"image": array(4, 1, 8, 8), "audio": array(4, 5)}
    with torch.no_grad():
        expected = model(*(torch.from_numpy(a) for a in feed.values()))["logits"].numpy()
    np.testing.assert_allclose(run(result, feed)["logits"], expected, atol=1e-5)


def test_exporting_twice_gives_equal_bytes_and_says_where_they_come_from(tmp_path: Path) -> None:
    source = save(TwoBranch(), (tensor(2, 1, 8, 8), tensor(2, 5)), tmp_path, "pt2")
    first, second = export(source, IMAGE_AUDIO), export(source, IMAGE_AUDIO)
    assert digest(first.graph.model) == digest(second.graph.model)
    text = serialize(first.graph.model)
    assert str(tmp_path).encode() not in text
    assert b".py" not in text
    layers = [n.metadata_props["pkg.torch.onnx.name_scopes"] for n in first.graph.model.graph]
    assert "['', 'head', 'linear_2']" in layers
    provenance = first.graph.provenance
    assert provenance["source"] == "TwoBranch.pt2"
    assert provenance["kind"] == "exported-program"
    assert provenance["torch"] == torch.__version__.split("+")[0] or provenance["torch"] == torch.__version__
    assert {"sha256", "opset", "onnxscript"} <= set(provenance)


@pytest.mark.parametrize("batch", [1, 2])
def test_a_batch_that_was_written_into_the_file_is_opened(batch: int, tmp_path: Path) -> None:
    model = FlattensByHand()
    result = export(save(model, (tensor(batch, 3, 4), tensor(batch, 6, 3)), tmp_path, "pt2"))
    assert result.graph.io.batch == BATCH
    assert any("saved for one batch size" in n for n in result.notes)
    assert any("synthetic" in n for n in result.notes)
    feed = {"image": array(7, 3, 4), "imu": array(7, 6, 3)}
    with torch.no_grad():
        expected = model(*(torch.from_numpy(a) for a in feed.values())).numpy()
    np.testing.assert_allclose(run(result, feed)["output"], expected, atol=1e-5)


def test_attention_saved_with_one_example_is_opened(tmp_path: Path) -> None:
    model = CrossAttention()
    args = (tensor(1, 5, 6), tensor(1, 4), torch.zeros(1, 5, dtype=torch.bool))
    result = export(save(model, args, tmp_path, "pt2"))
    assert result.graph.io.batch == BATCH
    assert result.graph.io.modalities["tokens_mask"] == "tokens"


def test_attention_from_torchscript_keeps_time_open(tmp_path: Path) -> None:
    model = CrossAttention()
    args = (tensor(2, 5, 6), tensor(2, 4), torch.zeros(2, 5, dtype=torch.bool))
    result = export(save(model, args, tmp_path, "torchscript"), SENTENCES)
    symbols = {d.symbol: d.checked for d in result.dynamic.dynamic}
    assert set(symbols) == {"batch", "tokens_dim1"}
    assert len(symbols["tokens_dim1"]) >= 2
    assert result.graph.io.input("tokens_mask").shape == ("batch", "tokens_dim1")
    assert result.parity.max_abs < 1e-5


@pytest.mark.parametrize("how", ["pt2", "pickle"])
def test_lstm_over_dynamic_time_stays_open(how: str, tmp_path: Path) -> None:
    model = LstmOverTime()
    samples = [{"audio": array(5 + i % 4, 6, seed=i), "image": array(4, seed=i)} for i in range(8)]
    result = export(save(model, (tensor(1, 7, 6), tensor(1, 4)), tmp_path, how), samples)
    assert result.graph.io.input("audio").shape == ("batch", "audio_dim1", 6)
    operators = [n.op_type for n in result.graph.model.graph]
    assert operators.count("LSTM") == 1
    weights = [i for n in result.graph.model.graph if n.op_type == "LSTM" for i in n.inputs[1:4]]
    assert all(w is not None and w.is_initializer() for w in weights)
    feed = {"audio": array(3, 31, 6), "image": array(3, 4)}
    with torch.no_grad():
        expected = model(*(torch.from_numpy(a) for a in feed.values())).numpy()
    np.testing.assert_allclose(run(result, feed)["output"], expected, atol=1e-5)


@pytest.mark.parametrize(
    "samples", [None, [{"imu": array(1, 6, seed=i), "image": array(4, seed=i)} for i in range(4)]]
)
def test_a_state_is_recognised_and_its_batch_axis_found(samples: Any, tmp_path: Path) -> None:
    source = save(StatefulGru(), (tensor(1, 1, 6), tensor(1, 4), tensor(2, 1, 8)), tmp_path, "pt2")
    result = export(source, samples)
    io = result.graph.io
    assert io.states == (StateSpec("h", "output_1"),)
    assert io.input("h").shape == (2, "batch", 8)
    assert [o.shape for o in io.outputs] == [("batch", 8), (2, "batch", 8)]
    assert "h" not in io.modalities


def test_a_declared_state_of_a_module_is_named_after_its_variable(tmp_path: Path) -> None:
    samples = [{"imu": array(1, 6, seed=i), "image": array(4, seed=i)} for i in range(4)]
    source = save(StatefulGru(), (), tmp_path, "pickle")
    result = export(source, samples, inputs=(TensorSpec("h", "float32", (2, "batch", 8)),))
    assert result.graph.io.states == (StateSpec("h", "h_out"),)
    with pytest.raises(ExportError, match="nothing says what 'h' is") as caught:
        export(source, samples)
    assert "--input h=" in caught.value.hint


def test_a_key_value_cache_grows(tmp_path: Path) -> None:
    cache = ((tensor(2, 3, 8), tensor(2, 3, 8)),)
    dynamic = ({0: Dim("b")}, (({0: Dim("b"), 1: Dim("t")}, {0: Dim("b"), 1: Dim("t")}),))
    source = save(Cached(), (torch.ones(2, 1, dtype=torch.int64), cache), tmp_path, "pt2", dynamic)
    io = export(source).graph.io
    assert [i.name for i in io.inputs] == ["input_ids", "past_0_key", "past_0_value"]
    assert [o.name for o in io.outputs] == ["logits", "present_0_key", "present_0_value"]
    assert io.states == (StateSpec("past_0_key", "present_0_key"), StateSpec("past_0_value", "present_0_value"))
    assert dict(io.modalities) == {"input_ids": "text"}
    assert io.input("past_0_key").shape[0] == BATCH


def test_nested_arguments_and_results_are_flattened(tmp_path: Path) -> None:
    inputs = (TensorSpec("image", "float32", (BATCH, 4)), TensorSpec("audio", "float32", (BATCH, 4)))
    result = export(save(Nested(), (), tmp_path, "pickle"), inputs=inputs)
    assert [i.name for i in result.graph.io.inputs] == ["image", "audio"]
    assert [o.name for o in result.graph.io.outputs] == ["logits", "hidden_states_0", "hidden_states_1"]


def test_a_model_for_one_sample_at_a_time_ends_fixed_with_the_reason(tmp_path: Path) -> None:
    samples = [{"image": array(4, seed=i), "audio": array(4, seed=i + 9)} for i in range(4)]
    result = export(save(OneAtATime(), (), tmp_path, "pickle"), samples)
    assert result.graph.io.batch == 1
    assert [(f.tensor, f.axis, f.size) for f in result.dynamic.fixed] == [("image", 0, 1), ("audio", 0, 1)]
    assert "fails at batch 4" in reasons(result)
    assert result.parity.outputs["output"].samples == 4


@pytest.mark.parametrize("how", ["pt2", "pickle"])
def test_a_model_whose_samples_see_each_other_is_named(how: str, tmp_path: Path) -> None:
    samples = [{"image": array(4, seed=i), "audio": array(4, seed=i + 9)} for i in range(4)]
    result = export(save(SeesNeighbours(), (tensor(3, 4), tensor(3, 4)), tmp_path, how), samples)
    assert result.graph.io.batch == 1
    assert "a sample's result depends on the others in its batch: output 'score' differs by" in reasons(result)


def test_a_size_that_the_data_varies_is_never_frozen(tmp_path: Path) -> None:
    samples = [{"audio": array(5 + i, 3, seed=i)} for i in range(3)]
    with pytest.raises(ExportError, match=r"input 'audio', axis 1: the data has the sizes 5, 6, 7") as caught:
        export(save(LoopsOverTime(), (), tmp_path, "pickle"), samples)
    assert "the layer encoder (_Loop) works for the size 5 only" in str(caught.value)
    assert "pad or cut 'audio'" in caught.value.hint


def test_a_declared_open_size_that_the_model_fixes_is_reported(tmp_path: Path) -> None:
    result = export(
        save(LoopsOverTime(), (), tmp_path, "pickle"), inputs=(TensorSpec("audio", "float32", (BATCH, "time", 3)),)
    )
    assert result.graph.io.input("audio").shape == (BATCH, 8, 3)
    assert "encoder (_Loop)" in reasons(result)
    assert result.dynamic.to_json()["fixed"][0]["axis"] == 1


class _Branches(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


class _Untranslatable(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.special.bessel_j0(x)


class _Random(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.dropout(x, 0.5, training=True)


class _Talks(nn.Module):
    def forward(self, x: torch.Tensor) -> dict[str, Any]:
        return {"logits": x, "note": "fine"}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (_Branches, r"torch.export cannot convert the layer 1 \(_Branches\)"),
        (_Untranslatable, r"no translation for prims.bessel_j0 in the layer 1 \(_Untranslatable\)"),
        (_Random, "the model is random: output 'output' differs"),
        (_Talks, "the model's result 'note' is a str"),
    ],
)
def test_a_model_that_cannot_convert_names_the_layer(layer: type[nn.Module], message: str, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(12, 12), layer())
    with pytest.raises(ExportError, match=message) as caught:
        export(save(model, (), tmp_path, "pickle"), [{"input": array(12, seed=i)} for i in range(3)])
    assert caught.value.hint


def test_a_graph_over_tolerance_names_the_output_and_sample(tmp_path: Path) -> None:
    source = save(TwoBranch(), (tensor(1, 1, 8, 8), tensor(1, 5)), tmp_path, "pt2")
    result = export(source, IMAGE_AUDIO)
    program = build_program(load_model(source), (), IMAGE_AUDIO[0])
    weights = [
        v for v in result.graph.model.graph.initializers.values() if v.shape is not None and v.shape.rank() == 2
    ]
    assert weights[-1].const_value is not None
    weights[-1].const_value = ir.tensor(weights[-1].const_value.numpy() * 1.5)
    rows = tuple({k: v[None] for k, v in s.items()} for s in IMAGE_AUDIO)
    feeds = Feeds(result.graph.io.inputs, {"image": 0, "audio": 0}, rows)
    broken = OrtRunner(result.graph.model)
    taken = {10 + i: s for i, s in enumerate(IMAGE_AUDIO)}
    with pytest.raises(ParityError, match=r"output '(logits|embedding)' differs by .* on sample 1\d"):
        check_parity(broken, program.run, result.graph.io, taken, feeds, Tolerance())


def test_data_that_does_not_fit_names_the_array(tmp_path: Path) -> None:
    source = save(TwoBranch(), (tensor(1, 1, 8, 8), tensor(1, 5)), tmp_path, "pt2")
    with pytest.raises(DataError, match="no array 'audio'"):
        export(source, [{"image": s["image"]} for s in IMAGE_AUDIO])
    with pytest.raises(DataError, match=r"'audio' has rows of shape \(5, 1, 1\)"):
        export(source, [s | {"audio": s["audio"][:, None, None]} for s in IMAGE_AUDIO])
    with pytest.raises(DataError, match="'audio' is int64, the model's input takes float32"):
        export(source, [s | {"audio": s["audio"].astype(np.int64)} for s in IMAGE_AUDIO])


def test_requests_that_contradict_the_model(tmp_path: Path) -> None:
    source = save(TwoBranch(), (tensor(1, 1, 8, 8), tensor(1, 5)), tmp_path, "pt2")
    with pytest.raises(RecipeError, match="no input 'imge'") as caught:
        export(source, IMAGE_AUDIO, inputs=(TensorSpec("imge", "float32", (1, 1)),))
    assert "'image'" in caught.value.hint
    with pytest.raises(RecipeError, match="the model's own signature says"):
        export(source, IMAGE_AUDIO, inputs=(TensorSpec("audio", "int64", (1, 5)),))
    with pytest.raises(RecipeError, match="no output 'x'"):
        export(source, IMAGE_AUDIO, states=(StateSpec("audio", "x"),))


@pytest.mark.parametrize(("shape", "fits"), [((BATCH, 5), True), ((1, 5), True), ((BATCH, 6), False)])
def test_declared_sizes_are_held_against_the_signature(
    tmp_path: Path, shape: tuple[int | str, ...], fits: bool
) -> None:
    loaded = load_model(save(TwoBranch(), (tensor(1, 1, 8, 8), tensor(1, 5)), tmp_path, "pt2"))
    declared = (TensorSpec("audio", "float32", shape),)
    if fits:
        assert build_program(loaded, declared, None).inputs[1] == declared[0]
        return
    with pytest.raises(
        RecipeError, match=r"'audio' is declared as audio\[batch,6\].* says audio\[1,5\]"
    ) as caught:
        build_program(loaded, declared, None)
    assert "--input" not in f"{caught.value} {caught.value.hint}"


def test_float64_data_is_taken_for_a_float32_model(tmp_path: Path) -> None:
    source = save(TwoBranch(), (), tmp_path, "pickle")
    result = export(source, [{k: v.astype(np.float64) for k, v in s.items()} for s in IMAGE_AUDIO])
    assert [i.dtype for i in result.graph.io.inputs] == ["float32", "float32"]


def test_data_of_another_size_than_the_file_was_saved_for_is_refused(tmp_path: Path) -> None:
    path = save(TwoBranch(), (tensor(1, 1, 8, 8), tensor(1, 5)), tmp_path, "pt2")
    wrong = [{"image": array(1, 7, 8, seed=i), "audio": array(5, seed=i)} for i in range(4)]
    with pytest.raises(
        DataError, match="input 'image', axis 2: the data has the size 7, the model was saved for 8"
    ):
        export(path, wrong)
