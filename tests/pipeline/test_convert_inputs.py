"""What convert takes: every kind of model file, states, declared words, the user's own readers and metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from edgemm.errors import DataError, RecipeError
from edgemm.pipeline import ConvertResult, convert
from edgemm.recipe import load_recipe
from edgemm.runtime import open_session

Convert = Callable[..., ConvertResult]
Arrays = dict[str, np.ndarray]
FLOAT: dict[str, Any] = {"quantize": {"precision": "fp32"}, "layout": "whole"}


def outputs(bundle: Path, arrays: Arrays) -> np.ndarray:
    with open_session(bundle) as session:
        return session.run({"image": arrays["image"], "audio": arrays["audio"]})["logits"]


# -- kinds of files ---------------------------------------------------------------------------------------------


def assert_same(result: ConvertResult, fp32: ConvertResult, arrays: Arrays, kind: str) -> None:
    assert result.manifest.info["model"]["kind"] == kind
    assert [s.name for s in result.manifest.stages] == ["image", "audio", "fusion"]
    np.testing.assert_allclose(outputs(result.path, arrays), outputs(fp32.path, arrays), atol=1e-5)


def test_state_dict_with_factory(
    fp32: ConvertResult, trained_folder: Path, data: Any, evaluation: Arrays, tmp_path: Path
) -> None:
    model = {"path": trained_folder / "model.pt", "factory": f"{trained_folder / 'net.py'}:ImageAudio"}
    result = convert({"model": model, "data": data, **FLOAT}, tmp_path / "out.edgemm")
    assert_same(result, fp32, evaluation, "module")
    assert json.loads((result.path / "recipe.json").read_text())["model"]["factory"] == "net.py:ImageAudio"


@pytest.mark.slow
def test_safetensors_with_factory(
    fp32: ConvertResult, trained_folder: Path, data: Any, evaluation: Arrays, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    save_file(torch.load(trained_folder / "model.pt"), tmp_path / "weights.bin")
    model = {"path": tmp_path / "weights.bin", "factory": "fusion_nets:ImageAudio"}
    assert_same(convert({"model": model, "data": data, **FLOAT}, tmp_path / "out"), fp32, evaluation, "module")


@pytest.mark.slow
def test_torchscript(
    fp32: ConvertResult, trained_folder: Path, data: Any, evaluation: Arrays, tmp_path: Path
) -> None:
    from fusion_nets import ImageAudio

    module = ImageAudio()
    module.load_state_dict(torch.load(trained_folder / "model.pt"))
    torch.jit.trace(module.eval(), (torch.zeros(2, 1, 16, 16), torch.zeros(2, 24, 32)), strict=False).save(
        str(tmp_path / "model.ts")
    )
    result = convert({"model": {"path": tmp_path / "model.ts"}, "data": data, **FLOAT}, tmp_path / "out")
    assert_same(result, fp32, evaluation, "torchscript")


def test_onnx(convert_onnx: Convert, fp32: ConvertResult, evaluation: Arrays) -> None:
    assert_same(convert_onnx(), fp32, evaluation, "onnx")


def test_recipe_with_paths_of_its_own(
    fp32: ConvertResult, model_onnx: Path, data: Any, evaluation: Arrays, tmp_path: Path
) -> None:
    for name, source in (
        ("model.onnx", model_onnx),
        ("c.npz", Path(data["calib"])),
        ("e.npz", Path(data["eval"])),
    ):
        (tmp_path / name).write_bytes(source.read_bytes())
    text = "model: {path: model.onnx}\ndata: {calib: c.npz, eval: e.npz, label: label}\nlayout: staged\n"
    (tmp_path / "recipe.yaml").write_text(text)
    recipe = load_recipe(tmp_path / "recipe.yaml", {"quantize": {"precision": "fp32"}, "layout": "whole"})
    assert_same(convert(recipe, tmp_path / "out.edgemm"), fp32, evaluation, "onnx")


def test_model_file_is_only_read(convert_onnx: Convert, model_onnx: Path) -> None:
    before = model_onnx.read_bytes()
    convert_onnx(data={})
    assert model_onnx.read_bytes() == before


# -- states -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def recurrent(tmp_path_factory: pytest.TempPathFactory) -> tuple[ConvertResult, torch.nn.Module, Arrays]:
    """A GRU cell whose state `h` comes back as `h_out`, calibrated with a stream that has no `h`."""
    from fusion_nets import Recurrent, export

    folder = tmp_path_factory.mktemp("recurrent")
    torch.manual_seed(0)
    module = Recurrent().eval()
    program = export(module, (torch.zeros(2, 6), torch.zeros(2, 8), torch.zeros(2, 16)), "motion", "image", "h")
    torch.export.save(program, folder / "gru.pt2")
    random = np.random.default_rng(0)
    stream = {
        "motion": random.standard_normal((60, 6)).astype(np.float32),
        "image": random.standard_normal((60, 8)).astype(np.float32),
    }
    np.savez(folder / "stream.npz", **stream)
    recipe = {"model": {"path": folder / "gru.pt2"}, "data": {"calib": str(folder / "stream.npz")}}
    result = convert(recipe | {"quantize": {"precision": "fp32"}, "layout": "staged"}, folder / "gru.edgemm")
    return result, module, stream


def in_torch(module: torch.nn.Module, stream: Arrays, state: torch.Tensor) -> np.ndarray:
    poses = []
    with torch.no_grad():
        for motion, image in zip(*map(torch.from_numpy, (stream["motion"], stream["image"])), strict=True):
            out = module(motion[None], image[None], state)
            state = out["h_out"]
            poses.append(out["pose"].numpy())
    return np.concatenate(poses)


def rows(stream: Arrays, index: int) -> Arrays:
    return {name: array[index : index + 1] for name, array in stream.items()}


def test_state_is_found_and_kept(recurrent: Any) -> None:
    result, module, stream = recurrent
    report = result.to_json()
    assert report["states"] == [{"input": "h", "output": "h_out"}]
    assert {i["name"]: i["modality"] for i in report["inputs"]} == {
        "motion": "motion",
        "image": "image",
        "h": None,
    }
    want = in_torch(module, stream, torch.zeros(1, 16))
    with open_session(result.path) as session:
        first = [session.run(rows(stream, i))["pose"] for i in range(60)]
        session.reset_state()
        again = [session.run(rows(stream, i))["pose"] for i in range(60)]
    np.testing.assert_allclose(np.concatenate(first), want, atol=1e-5)
    np.testing.assert_array_equal(first, again)
    assert (
        np.abs(
            want - in_torch(module, {n: a[:1].repeat(60, 0) for n, a in stream.items()}, torch.ones(1, 16))
        ).max()
        > 0.1
    )


def test_given_state_overrides_the_kept_one(recurrent: Any) -> None:
    result, module, stream = recurrent
    want = in_torch(module, stream, torch.ones(1, 16))
    with open_session(result.path) as session:
        session.run(rows(stream, 9))
        pose = session.run(rows(stream, 0) | {"h": np.ones((1, 16), np.float32)})["pose"]
        following = session.run(rows(stream, 1))["pose"]
    np.testing.assert_allclose(np.concatenate([pose, following]), want[:2], atol=1e-5)


def test_parts_of_a_stream_are_consecutive(recurrent: Any) -> None:
    counts = {name: part["samples"] for name, part in recurrent[0].to_json()["data"].items()}
    assert counts == {"calibration": 24, "search": 18, "evaluation": 18}


ACCUMULATE = """<ir_version: 10, opset_import: ["": 20]>
g (float[batch,4] camera_frame, float[batch,3] gyro, float[batch,3] past_sum)
  => (float[batch,7] joined, float[batch,3] total)
{ total = Add(gyro, past_sum)  joined = Concat<axis=1>(camera_frame, total) }"""


@pytest.fixture
def accumulate(tmp_path: Path) -> Path:
    """camera_frame and gyro, whose running sum is `total`."""
    import onnx.parser

    path = tmp_path / "sum.onnx"
    path.write_bytes(onnx.parser.parse_model(ACCUMULATE).SerializeToString())
    return path


def test_declared_state_reaches_the_manifest_and_the_runtime(accumulate: Path, tmp_path: Path) -> None:
    recipe = {"model": {"path": accumulate}, "states": {"past_sum": "total"}, **FLOAT}
    result = convert(recipe, tmp_path / "out.edgemm")
    assert result.to_json()["states"] == [{"input": "past_sum", "output": "total"}]
    feed = {"camera_frame": np.zeros((1, 4), np.float32), "gyro": np.ones((1, 3), np.float32)}
    with open_session(result.path) as session:
        values = [session.run(feed)["joined"][0, -1] for _ in range(3)]
    assert values == [1, 2, 3]


# -- declared words ---------------------------------------------------------------------------------------------


def test_modalities_group_inputs(accumulate: Path, tmp_path: Path) -> None:
    inputs = {"camera_frame": {"modality": "rig"}, "gyro": {"modality": "rig"}}
    result = convert({"model": {"path": accumulate}, "inputs": inputs, **FLOAT}, tmp_path / "out.edgemm")
    io = result.manifest.io.to_json()["inputs"]
    assert {i["name"]: (i["modality"], i["reason"]) for i in io[:2]} == {
        "camera_frame": ("rig", "declared"),
        "gyro": ("rig", "declared"),
    }
    assert {m for s in result.manifest.stages for m in s.modalities} >= {"rig"}


def test_declared_input_shapes_a_state_dict_without_data(trained_folder: Path, tmp_path: Path) -> None:
    recipe = {
        "model": {"path": trained_folder / "model.pt", "factory": "fusion_nets:ImageAudio"},
        "inputs": {"image": {"shape": ("batch", 1, 16, 16)}, "audio": {"shape": ("batch", 24, 32)}},
        **FLOAT,
    }
    result = convert(recipe, tmp_path / "out.edgemm")
    shapes = {i["name"]: i["shape"] for i in result.to_json()["inputs"]}
    assert shapes == {"image": ["batch", 1, 16, 16], "audio": ["batch", 24, 32]}
    assert any("synthetic inputs" in note for note in result.to_json()["notes"])


def test_unknown_output_is_refused_before_the_measuring(convert_onnx: Convert) -> None:
    with pytest.raises(DataError, match=r"no output 'logit' in this model \(outputs: logits\)") as caught:
        convert_onnx(evaluate={"output": "logit"})
    assert caught.value.hint == "did you mean 'logits'?"


@pytest.mark.parametrize(
    ("evaluate", "message", "hint"),
    [
        ({"metric": "acuracy"}, r"no metric 'acuracy'", "did you mean 'accuracy'?"),
        ({"metric": "auroc"}, r"metric 'auroc' needs labels", "--label"),
        ({"metric": "no_such.py:f"}, r"no_such.py: no such file", "must name a Python file"),
    ],
)
def test_metric_is_checked_before_the_model_is_read(
    evaluate: Any, message: str, hint: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message) as caught:
        convert({"model": {"path": "no-such.onnx"}, "evaluate": evaluate}, tmp_path / "out.edgemm")
    assert hint in caught.value.hint


# -- the user's own code ----------------------------------------------------------------------------------------

READER = """
import numpy as np

class Reader:
    def __init__(self):
        with np.load({path!r}) as file:
            self.arrays = dict(file)
    def __len__(self):
        return 120
    def __getitem__(self, index):
        return {{name: array[index] for name, array in self.arrays.items()}}
"""


def test_own_reader_gives_what_the_file_gives(convert_onnx: Convert, data: Any, tmp_path: Path) -> None:
    (tmp_path / "reader.py").write_text(READER.format(path=data["calib"]))
    section = {"label": "label", "eval": data["eval"]}
    options: dict[str, Any] = {"quantize": {"precision": "int8"}, "evaluate": {"max_drop": 0.05}}
    by_reader = convert_onnx("a.edgemm", data=section | {"calib": f"{tmp_path / 'reader.py'}:Reader"}, **options)
    by_file = convert_onnx("b.edgemm", data=section | {"calib": data["calib"]}, **options)
    parts = [result.to_json()["data"] for result in (by_reader, by_file)]
    assert parts[0]["calibration"]["origin"] == "reader.py:Reader"
    assert [p["calibration"]["digest"] for p in parts] == [parts[0]["calibration"]["digest"]] * 2
    name = "engines/cpu-int8/whole.onnx"
    assert (by_reader.path / name).read_bytes() == (by_file.path / name).read_bytes()


METRIC = """
import numpy as np

def second_best(outputs, labels):
    order = np.argsort(outputs["logits"], axis=1)
    return float(np.mean([label in row[-2:] for row, label in zip(order, labels)]))

def broken(outputs, labels):
    return float("nan")
"""


def test_own_metric_is_used(convert_onnx: Convert, evaluation: Arrays, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METRIC)
    result = convert_onnx(evaluate={"metric": f"{tmp_path / 'own.py'}:second_best"})
    score = result.to_json()["variants"][0]["accuracy"]
    order = np.argsort(outputs(result.path, evaluation), axis=1)
    want = np.mean([label in row[-2:] for row, label in zip(order, evaluation["label"], strict=True)])
    assert score["variant"] == pytest.approx(want)
    assert str(tmp_path) not in (result.path / "manifest.json").read_text()


def test_metric_that_is_no_number_is_named(convert_onnx: Convert, tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(METRIC)
    with pytest.raises(DataError, match=r"own.py:broken': the float model scores nan on 200 evaluation samples"):
        convert_onnx(evaluate={"metric": f"{tmp_path / 'own.py'}:broken"})
    assert sorted(p.name for p in tmp_path.iterdir() if p.name != "__pycache__") == ["own.py"]


def test_unknown_recipe_field_is_named() -> None:
    with pytest.raises(RecipeError, match=r"recipe: data.calibration: there is no such field") as caught:
        convert({"model": {"path": "x.onnx"}, "data": {"calibration": "c.npz"}}, "out.edgemm")
    assert caught.value.hint == "did you mean 'calib'?"
