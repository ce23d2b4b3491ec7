"""Declared inputs, modalities and states."""

from __future__ import annotations

import pytest

from edgemm.errors import RecipeError
from edgemm.export.signature import find_states, group_modalities, parse_input
from edgemm.tensors import Dim, StateSpec, TensorSpec


def spec(name: str, *shape: Dim, dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, dtype, shape)


def ids(name: str, *shape: Dim) -> TensorSpec:
    return TensorSpec(name, "int64", shape)


@pytest.mark.parametrize(
    ("text", "dtype", "shape"),
    [
        ("image=1x3x224x224:float32", "float32", (1, 3, 224, 224)),
        ("ids=batchxseq:int64", "int64", ("batch", "seq")),
        ("x=batch,3,32,32", "float32", ("batch", 3, 32, 32)),
        ("m=Bx10xT:float", "float32", ("batch", 10, "T")),
        ("boxes=batchxboxesx4", "float32", ("batch", "boxes", 4)),
        ("text=nxtimexmels", "float32", ("batch", "time", "mels")),
        ("mask=batch_sizex7:bool", "bool", ("batch", 7)),
        ("sr=:int64", "int64", ()),
        ("a.b:0=2x3", "float32", (2, 3)),
    ],
)
def test_parse_input(text: str, dtype: str, shape: tuple[Dim, ...]) -> None:
    if ":0" in text:
        with pytest.raises(RecipeError):
            parse_input("=" + text)
        return
    assert parse_input(text) == TensorSpec(text.split("=")[0], dtype, shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image", "expected NAME=SHAPE:DTYPE"),
        ("=1x3", "expected NAME=SHAPE:DTYPE"),
        ("image=1x3:flaot32", "'flaot32' is no dtype"),
        ("image=1x-3", "'-3' in the shape"),
        ("image=0x3", "size of 0"),
    ],
)
def test_parse_input_says_what_is_wrong(text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        parse_input(text)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ([spec("image", "batch", 3, 8, 8), spec("audio", "batch", 40)], ["image", "audio"]),
        (
            [ids("input_ids", "batch", "t"), spec("pixel_values", "batch"), ids("attention_mask", "batch", "t")],
            ["text", "image", "text"],
        ),
        (
            [
                ids("input_ids", "batch", "t"),
                ids("token_type_ids", "batch", "t"),
                spec("pixel_values", "batch", 3, 8, 8),
                ids("pixel_mask", "batch", 8, 8),
            ],
            ["text", "text", "image", "image"],
        ),
        (
            [ids("input_ids", "batch", 4), spec("input_features", "batch", 1, 9), ids("is_longer", "batch", 1)],
            ["text", "audio", "audio"],
        ),
        ([spec("input_features", "batch", 80, 30), ids("decoder_input_ids", "batch", "t")], ["audio", "text"]),
        (
            [ids("input_ids", "batch", 4), spec("visual_feats", "batch", 3, 9), spec("visual_pos", "batch", 3, 4)],
            ["text", "image", "image"],
        ),
        ([spec("lidar", "batch", "n", 4), spec("camera", "batch", 3, 8, 8), spec("mask", "batch", "n")],
         ["lidar", "camera", "lidar"]),
        ([spec("audio", "batch", 9, 4), spec("image", "batch", 3), ids("audio_lengths", "batch")],
         ["audio", "image", "audio"]),
        ([spec("image_input", "batch", 9), spec("gyro_features", "batch", 3)], ["image", "gyro"]),
        ([ids("text_ids", "batch", 9), spec("image", "batch", 3)], ["text", "image"]),
    ],
)  # fmt: skip
def test_modalities_are_guessed_with_a_reason(inputs: list[TensorSpec], expected: list[str]) -> None:
    modalities, reasons = group_modalities(inputs, {}, ())
    assert [modalities[i.name] for i in inputs] == expected
    assert all(reasons[i.name] for i in inputs)


def test_declared_modalities_win_and_companions_follow() -> None:
    inputs = [ids("input_ids", "batch", "t"), ids("attention_mask", "batch", "t"), spec("x", "batch", 3)]
    modalities, reasons = group_modalities(inputs, {"input_ids": "caption"}, ())
    assert modalities == {"input_ids": "caption", "attention_mask": "caption", "x": "x"}
    assert reasons["input_ids"] == "declared"


def test_a_modality_for_an_unknown_input_or_a_state() -> None:
    inputs = [spec("image", "batch", 3), spec("h", 1, "batch", 4)]
    with pytest.raises(RecipeError, match="no input 'imge'") as caught:
        group_modalities(inputs, {"imge": "a"}, ())
    assert "'image'" in caught.value.hint
    with pytest.raises(RecipeError, match="is a state"):
        group_modalities(inputs, {"h": "a"}, (StateSpec("h", "h_out"),))
    assert "h" not in group_modalities(inputs, {}, (StateSpec("h", "h_out"),))[0]


@pytest.mark.parametrize(
    ("name", "returned"),
    [
        ("h", "h_out"), ("h0", "hn"), ("h0", "hN"), ("h", "hn"), ("state", "state_out"), ("state", "new_state"),
        ("hidden", "next_hidden"), ("state_in", "state_out"), ("past_0_key", "present_0_key"),
        ("past_key_values.0.key", "present.0.key"), ("prev_state", "state"),
    ],
)  # fmt: skip
def test_states_are_found_by_name_and_shape(name: str, returned: str) -> None:
    inputs = [spec("x", "batch", 3), spec(name, 2, "batch", 8)]
    outputs = [spec("y", "batch", 3), spec(returned, 2, "batch", 8)]
    assert find_states(inputs, outputs) == (StateSpec(name, returned),)
    assert find_states(inputs, [spec("y", "batch", 3), spec(returned, 2, "batch", 9)]) == ()


def test_states_without_output_names_need_to_be_the_only_fit() -> None:
    inputs = [spec("x", "batch", 3), spec("h0", 1, "batch", 8), spec("c0", 1, "batch", 8)]
    outputs = [spec("output", "batch", 3), spec("output_1", 1, "batch", 8), spec("output_2", 1, "batch", 8)]
    assert find_states(inputs, outputs) == (StateSpec("h0", "output_1"), StateSpec("c0", "output_2"))
    assert find_states(inputs, outputs[:2]) == ()
    assert find_states([spec("image", "batch", 8)], [spec("output", "batch", 8)]) == ()


def test_declared_states_win_and_nonsense_is_refused() -> None:
    inputs = [spec("x", "batch", 3), spec("m", 1, "batch", 8)]
    outputs = [spec("y", "batch", 3), spec("z", 1, "batch", 8)]
    assert find_states(inputs, outputs, [StateSpec("m", "z")]) == (StateSpec("m", "z"),)
    for wrong, message in (
        (StateSpec("n", "z"), "no input 'n'"),
        (StateSpec("m", "q"), "no output 'q'"),
        (StateSpec("x", "z"), "the input is x"),
    ):
        with pytest.raises(RecipeError, match=message):
            find_states(inputs, outputs, [wrong])
    with pytest.raises(RecipeError, match="declared twice"):
        find_states(inputs, outputs, [StateSpec("m", "z"), StateSpec("m", "z")])
