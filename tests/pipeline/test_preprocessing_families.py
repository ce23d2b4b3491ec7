"""One model of sound, motion and text that takes what sensors give: two families in the graph, one on the host."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers

from edgemm.bake.verify import fitting_rows
from edgemm.bundle import read_manifest
from edgemm.data import open_samples
from edgemm.errors import DataError, RecipeError
from edgemm.pipeline import ConvertResult, convert
from edgemm.pipeline.preprocessing import read_preprocessing
from edgemm.preprocess import parse, run
from edgemm.preprocess.front import InputSteps
from edgemm.recipe import build_recipe
from edgemm.runtime import open_session
from edgemm.tensors import TensorSpec

SOUND: list[Any] = [
    "pcm",
    {"resample": {"source": 22050, "rate": 16000}},
    {"log_mel": {"rate": 16000, "bands": 24, "fft": 400, "hop": 160, "range_db": 80}},
]
MOTION: list[Any] = [
    {"units": {"source": "g", "target": "m/s2", "counts": 2048}},
    {"mount_axes": {"axes": ["y", "-x", "z"]}},
    {"gravity": {"by": "low_pass"}},
    "transpose",
]
WORDS = ["[PAD]", "[UNK]", "lift", "put", "down", "red", "cup", "arm", "stop"]


def write_model(path: Path) -> None:
    """Means of the bands over open time, of motion, and of the words that a mask keeps, joined."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> TensorProto:
        return numpy_helper.from_array(rng.normal(0, 0.3, shape).astype(np.float32), name)

    def integers(name: str, *values: int) -> TensorProto:
        return numpy_helper.from_array(np.array(values, np.int64), name)

    nodes = [
        helper.make_node("ReduceMean", ["bands", "two"], ["heard"], keepdims=0),
        helper.make_node("MatMul", ["heard", "w_sound"], ["sound"]),
        helper.make_node("Abs", ["motion"], ["moved"]),
        helper.make_node("ReduceMean", ["moved", "two"], ["felt"], keepdims=0),
        helper.make_node("MatMul", ["felt", "w_motion"], ["feeling"]),
        helper.make_node("Gather", ["table", "input_ids"], ["words"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "two"], ["column"]),
        helper.make_node("Mul", ["words", "column"], ["kept"]),
        helper.make_node("ReduceSum", ["kept", "one"], ["said"], keepdims=0),
        helper.make_node("Concat", ["sound", "feeling", "said"], ["joined"], axis=1),
        helper.make_node("MatMul", ["joined", "w_head"], ["logits"]),
    ]
    inputs = [
        helper.make_tensor_value_info("bands", TensorProto.FLOAT, ["batch", 24, "frames"]),
        helper.make_tensor_value_info("motion", TensorProto.FLOAT, ["batch", 6, 50]),
        helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "length"]),
        helper.make_tensor_value_info("attention_mask", TensorProto.INT64, ["batch", "length"]),
    ]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 4])]
    constants = [integers("one", 1), integers("two", 2), weights("table", len(WORDS), 8), weights("w_head", 24, 4)]
    constants += [weights("w_sound", 24, 8), weights("w_motion", 6, 8)]
    graph = helper.make_graph(nodes, "fusion", inputs, outputs, constants)
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def raw_samples(count: int, seconds: float = 0.3) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(3)
    commands = ["lift red cup", "stop", "put arm down down", "lift it"]
    return {
        "sound": rng.normal(0, 3000, (count, int(seconds * 22050))).astype(np.int16),
        "watch": rng.integers(-4000, 4000, (count, 50, 6)).astype(np.int16),
        "command": np.array([commands[i % 4] for i in range(count)]),
    }


def words_of(file: Path, give: str) -> dict[str, Any]:
    steps = ["lowercase", {"tokenize": {"file": str(file), "length": 6, "give": give}}]
    return {"modality": "text", "source": "command", "preprocess": steps}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("families")
    write_model(folder / "model.onnx")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    np.savez(folder / "raw.npz", **raw_samples(24))
    return folder


def recipe(place: Path, **words: Any) -> dict[str, Any]:
    file = place / "tokenizer.json"
    return {
        "model": {"path": place / "model.onnx"},
        "inputs": {
            "bands": {
                "modality": "audio",
                "source": "sound",
                "raw": {"dtype": "int16", "shape": ["samples"]},
                "preprocess": SOUND,
            },
            "motion": {"modality": "imu", "source": "watch", "preprocess": MOTION, "bake": True},
            "input_ids": words_of(file, "input_ids") | words,
            "attention_mask": words_of(file, "attention_mask") | words,
        },
        "data": {"calib": str(place / "raw.npz")},
        "quantize": {"precision": "fp32"},
        "engine": "onnxruntime",
        "layout": "staged",
    }


@pytest.fixture(scope="module")
def made(place: Path) -> ConvertResult:
    return convert(recipe(place), place / "model.edgemm")


def wanted(place: Path, raw: dict[str, np.ndarray]) -> np.ndarray:
    """What the model gives for what the steps give in numpy."""
    steps = {
        n: parse(words_of(place / "tokenizer.json", n)["preprocess"]) for n in ("input_ids", "attention_mask")
    }
    feed = {name: run(way, raw["command"]) for name, way in steps.items()}
    feed |= {"bands": run(parse(SOUND), raw["sound"]), "motion": run(parse(MOTION), raw["watch"])}
    session = ort.InferenceSession(place / "model.onnx", providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, feed)
    return logits


@pytest.mark.parametrize("seconds", [0.3, 0.71])
def test_takes_raw_samples_of_any_length(place: Path, made: ConvertResult, seconds: float) -> None:
    raw = raw_samples(5, seconds)
    with open_session(made.path) as session:
        taken = {i.name: (i.dtype, i.shape) for i in session.io.inputs}
        assert taken == {
            "sound": ("int16", ("batch", "samples")),
            "watch": ("int16", ("batch", 50, 6)),
            "command": ("str", ("batch",)),
        }
        assert session.io.modality_names() == ("audio", "imu", "text")
        got = session.run(raw)["logits"]
        with session.stream() as stream:
            stream.push("audio", raw["sound"][0])
            stream.push("imu", raw["watch"][0])
            stream.push("text", str(raw["command"][0]))
            streamed = stream.infer().outputs["logits"]
        with pytest.raises(DataError, match="command"):
            session.run(raw | {"command": np.zeros((5, 6), np.int64)})
    want = wanted(place, raw)
    assert np.abs(got - want).max() < 1e-5 * np.abs(want).max()
    assert np.abs(streamed - want[:1]).max() < 1e-5 * np.abs(want).max()


def test_an_open_size_has_one_name_wherever_it_is_told(made: ConvertResult) -> None:
    """What sound is called in the recipe, and what its frames are called in the model."""
    manifest = read_manifest(made.path)
    assert manifest.info["preprocess"]["bands"]["way"].startswith("sound[batch,samples] int16 -> ")
    assert manifest.info["preprocess"]["bands"]["way"].endswith(" -> bands[batch,24,frames] float32")
    assert {d["symbol"] for d in manifest.info["dynamic"]["dynamic"]} >= {"batch", "samples"}


def test_constants_of_steps_are_no_parameters_and_told_apart(made: ConvertResult) -> None:
    manifest = read_manifest(made.path)
    own = {"audio": 24 * 8, "imu": 6 * 8, "text": len(WORDS) * 8, "audio, imu, text": 24 * 4}
    assert {", ".join(s.modalities): s.parameters for s in manifest.stages} == own
    steps = manifest.info["preprocess_bytes"]
    weights = 4 * sum(own.values())
    assert steps > 100_000 > weights  # windowed sines and cosines, mel filters, filters of motion
    assert manifest.info["float_size_bytes"] - steps - weights < 20_000
    assert any(f"{steps / 1e6:.2f} MB of both are constants of preprocessing" in x for x in made.summary_lines())
    assert made.to_json()["preprocess_bytes"] == steps


def test_too_short_a_recording_is_refused_with_what_is_needed(place: Path, made: ConvertResult) -> None:
    least = read_manifest(made.path).least["samples"]
    sound = np.ones((1, least), np.int16)
    assert run(parse(SOUND), sound).shape[0] == 1
    with pytest.raises(DataError):
        run(parse(SOUND), sound[:, 1:])
    raw = raw_samples(1) | {"sound": sound}
    with open_session(made.path) as session, session.stream() as stream:
        assert np.isfinite(session.run(raw)["logits"]).all()
        said = f"input 'sound': got 100 in axis 1 .'samples'., its preprocessing needs at least {least}"
        with pytest.raises(DataError, match=said):
            session.run(raw | {"sound": sound[:, :100]})
        with pytest.raises(DataError, match=said):
            stream.push("audio", sound[0, :100])


def test_the_bundle_has_its_own_tokenizer(place: Path, made: ConvertResult) -> None:
    shipped = list(made.path.rglob("tokenizer.json"))
    assert len(shipped) == 1
    assert shipped[0].read_bytes() == (place / "tokenizer.json").read_bytes()


def test_two_tokenizers_of_one_name_are_refused(place: Path, tmp_path: Path) -> None:
    """Both would be `preprocess/tokenizer.json`: ids of one, mask of the other."""
    text = (place / "tokenizer.json").read_text()
    (tmp_path / "tokenizer.json").write_text(text)
    sections = recipe(place)
    sections["inputs"]["attention_mask"] |= words_of(tmp_path / "tokenizer.json", "attention_mask")
    source = open_samples(str(place / "raw.npz"))
    read_preprocessing(build_recipe(sections, where="test"), source)  # the same bytes
    (tmp_path / "tokenizer.json").write_text(text.replace('"cup"', '"mug"'))
    with pytest.raises(
        RecipeError, match=r"inputs\.attention_mask\.preprocess: .* would be one file in the bundle"
    ):
        read_preprocessing(build_recipe(sections, where="test"), source)


def test_text_is_never_baked(place: Path) -> None:
    with pytest.raises(RecipeError, match=r"inputs\.input_ids\.bake is true: .*cannot be computed by a graph"):
        convert(recipe(place, bake=True), place / "baked.edgemm")


def test_a_filter_over_a_window_of_open_length_runs_on_the_host_or_is_refused(place: Path) -> None:
    options = recipe(place)
    options["inputs"]["motion"]["raw"] = {"dtype": "int16", "shape": ["time", 6]}
    with pytest.raises(RecipeError, match=r"inputs\.motion\.bake is true: .*windows of a fixed length"):
        convert(options, place / "open.edgemm")


def test_an_open_length_is_told_with_one_that_fits(place: Path, made: ConvertResult) -> None:
    (dim,) = [d for d in read_manifest(made.path).info["dynamic"]["dynamic"] if d["symbol"] == "samples"]
    assert dim == {"tensor": "sound", "axis": 1, "symbol": "samples", "checked": [6615]}
    way = InputSteps("bands", TensorSpec("sound", "int16", ("batch", "samples")), parse(SOUND))
    assert fitting_rows(way).shape == (2, 1024)  # 16 samples have no frame


def test_int16_stays_on_the_host_where_tensorrt_is_a_target(place: Path) -> None:
    sections = recipe(place) | {"target": ["cpu", "jetson-orin-agx"]}
    sections["inputs"]["motion"].pop("bake")
    source = open_samples(str(place / "raw.npz"))
    found = read_preprocessing(build_recipe(sections, where="test"), source)
    assert found.baked == ()
    assert "TensorRT takes no int16, and jetson-orin-agx is a target" in " ".join(found.notes)
    sections["inputs"]["bands"]["bake"] = True
    with pytest.raises(RecipeError, match="TensorRT takes no int16") as caught:
        read_preprocessing(build_recipe(sections, where="test"), source)
    assert "pcm: {bits: 16}" in caught.value.hint
    sections["inputs"]["bands"] |= {
        "raw": {"dtype": "int32", "shape": ["samples"]},
        "preprocess": [{"pcm": {"bits": 16}}, *SOUND[1:]],
    }
    assert [w.input for w in read_preprocessing(build_recipe(sections, where="test"), source).baked] == ["bands"]
