"""Other heads: what a conversion adds of them, and what streams do with them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from missing_models import SUM, sum_samples, write

from edgemm.bundle import HeadEntry, read_manifest, verify
from edgemm.errors import BundleError, DataError, RecipeError
from edgemm.pipeline import ConvertResult, convert
from edgemm.pipeline.heads import fits
from edgemm.runtime import FusionSession, open_session
from edgemm.runtime.heads import OpenHead, choose_head

AUDIO = 6.0
"""What the head adds to an image in the place of any audio: 2 x 3 is the mean."""


def head(text: str, folder: Path, name: str = "head.onnx") -> Path:
    """Writes a head as an ONNX file."""
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["" : 20]>\n{text}')
    onnx.checker.check_model(model)
    onnx.save(model, folder / name)
    return folder / name


ALONE = "alone (float[batch,1] image) => (float[batch,1] y) <float six = {6}> { y = Add(image, six) }"


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> ConvertResult:
    folder = tmp_path_factory.mktemp("sum")
    recipe = write(folder, SUM, sum_samples) | {
        "stream": {"trigger": "image", "optional": {"audio": "head:alone"}},
        "missing": {"heads": {"alone": head(ALONE, folder)}, "report": True},
    }
    return convert(recipe, folder / "sum.edgemm")


@pytest.fixture
def session(result: ConvertResult) -> Any:
    with open_session(result.path) as session:
        yield session


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_the_bundle_lists_and_verifies_the_head(result: ConvertResult) -> None:
    manifest = read_manifest(result.path)
    verify(result.path, manifest)
    (entry,) = manifest.heads
    assert (entry.name, entry.modalities, entry.outputs) == ("alone", ("image",), ("y",))
    assert entry.file in manifest.files
    assert entry.variants == (result.shipped.name,)


def test_names_that_would_be_one_file_are_two_heads(tmp_path: Path) -> None:
    names = {"one/way": 1.0, "one_way": 2.0, "One_way": 3.0}
    files = {name: head(ALONE.replace("6", f"{n}"), tmp_path, f"{n}.onnx") for name, n in names.items()}
    made = convert(write(tmp_path, SUM, sum_samples) | {"missing": {"heads": files}}, tmp_path / "sum.edgemm")
    assert len({entry.file.lower() for entry in read_manifest(made.path).heads}) == 3
    with open_session(made.path) as session:
        for name, added in names.items():
            with session.stream(trigger="image", optional={"audio": f"head:{name}"}) as stream:
                stream.push("image", np.array([1, 2, 3], np.float32))
                assert stream.infer().outputs["y"].tolist() == [[6 + added]]


def test_it_runs_where_the_modality_lacks_and_the_encoder_of_that_does_not(session: FusionSession) -> None:
    clock = Clock()
    stream = session.stream(clock=clock)
    picture, sound = np.array([1, 2, 3], np.float32), np.array([1, 1, 1], np.float32)
    stream.push("image", picture)
    first = stream.poll()
    assert first is not None
    assert first.outputs["y"].tolist() == [[6 + AUDIO]]
    assert dict(first.filled) == {"audio": "head:alone"}
    assert (first.encoded, first.cached) == (("image", "head:alone"), ())
    clock.now += 1
    stream.push("audio", sound)
    stream.push("image", picture)
    both = stream.poll()
    assert both is not None
    assert both.outputs["y"].tolist() == [[6 + 3]]
    assert "head:alone" not in both.encoded


def test_an_unchanged_set_runs_nothing(session: FusionSession) -> None:
    stream = session.stream(clock=(clock := Clock()))
    stream.push("image", np.ones(3, np.float32))
    results = []
    for _ in range(2):
        clock.now += 1
        results.append(stream.infer())
    assert results[1].outputs["y"].tolist() == [[3 + AUDIO]]
    assert (results[1].encoded, results[1].cached) == ((), ("image", "head:alone"))


def test_samples_that_come_and_stay_away_leave_nothing_behind(session: FusionSession) -> None:
    """Each result is that of the samples in its set, whatever was there before."""
    clock, random = Clock(), np.random.default_rng(0)
    stream = session.stream(clock=clock, max_age={"audio": 0.5})
    sounds = 0
    for _ in range(80):
        clock.now += 1
        picture = np.full(3, float(random.integers(0, 3)), np.float32)
        sound = None
        if random.integers(0, 2):
            sound = np.full(3, float(random.integers(0, 3)), np.float32)
            stream.push("audio", sound)
            sounds += 1
        stream.push("image", picture)
        found = stream.poll()
        assert found is not None
        expected = picture.sum() + (AUDIO if sound is None else sound.sum())
        assert found.outputs["y"].tolist() == [[expected]]
    assert 20 < sounds < 60


def test_the_report_has_it(result: ConvertResult) -> None:
    assert result.modalities is not None
    rows = {(tuple(r["missing"]), r["fill"]): r["scores"] for r in result.modalities["rows"]}
    found = rows[("audio",), "head:alone"]
    assert found["float"] == pytest.approx(rows[("audio",), "mean"]["float"], rel=0.1)  # that adds about 6, too
    assert found["float"] == pytest.approx(found[result.shipped.name])


def test_the_other_modality_has_no_head(session: FusionSession) -> None:
    with pytest.raises(BundleError, match="the bundle holds no 'head:alone' for 'image'") as caught:
        session.stream(optional={"image": "head:alone"})
    assert "--head alone=MODEL" in caught.value.hint


def test_a_trained_module_is_a_head(tmp_path: Path) -> None:
    """It is exported as any model, with its input called after the modality or by its place."""

    class Alone(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(1, 1)
            torch.nn.init.ones_(self.layer.weight)
            torch.nn.init.constant_(self.layer.bias, AUDIO)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            return self.layer(image)

    batch = torch.export.Dim("batch")
    program = torch.export.export(Alone().eval(), (torch.zeros(2, 1),), dynamic_shapes={"image": {0: batch}})
    torch.export.save(program, tmp_path / "head.pt2")
    recipe = write(tmp_path, SUM, sum_samples) | {"missing": {"heads": {"alone": tmp_path / "head.pt2"}}}
    converted = convert(recipe, tmp_path / "out.edgemm")
    with open_session(converted.path) as session:
        stream = session.stream(trigger="image", optional={"audio": "head:alone"})
        stream.push("image", np.ones(3, np.float32))
        assert next(stream).outputs["y"].tolist() == [[3 + AUDIO]]


@pytest.mark.parametrize(
    ("text", "change", "message"),
    [
        (
            ALONE.replace(" image", " imge").replace("(image", "(imge"),
            {},
            "head 'alone': .*imge",
        ),
        (
            "h (float[batch,3] image) => (float[batch,1] y) <int64[1] a = {1}> { y = ReduceSum(image, a) }",
            {},
            "head 'alone': input 'image', axis 1",
        ),
        (
            ALONE.replace("(float[batch,1] y)", "(float[batch,1] y, float[batch,1] z)")[:-1] + "z = Neg(y) }",
            {},
            "2 re",
        ),
        (
            "h (float[batch,1] image) => (float[batch,2] y) { y = Concat<axis=1>(image, image) }",
            {},
            r"gives y\[.*,2\] float32, the model y\[",
        ),
        (ALONE, {"missing": {"heads": {"alone": "heda.onnx"}}}, "head 'alone': there is no file heda.onnx"),
        (ALONE, {"layout": "whole"}, "the layout 'whole' has one engine"),
        (ALONE, {"stream": {"optional": {"audio": "head:alnoe"}}}, "'head:alnoe', which missing.heads does not"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, text: str, change: dict[str, Any], message: str) -> None:
    recipe = write(tmp_path, SUM, sum_samples) | {"missing": {"heads": {"alone": head(text, tmp_path)}}} | change
    with pytest.raises(RecipeError, match=message):
        convert(recipe, tmp_path / "out.edgemm")
    assert not (tmp_path / "out.edgemm").exists()


def test_encoders_that_a_plan_changed_do_not_fit() -> None:
    entry = HeadEntry("alone", ("image",), "heads/alone.onnx", ("f",), ("y",), "onnxruntime", ())
    given = {"f": np.random.default_rng(0).standard_normal((32, 8)).astype(np.float32)}
    assert fits(entry, {"f": given["f"] * 1.01}, given)
    assert not fits(entry, {"f": given["f"] * np.linspace(0.5, 2, 8, dtype=np.float32)}, given)
    assert not fits(entry, {}, given)


def open_head(name: str, *modalities: str) -> OpenHead:
    entry = HeadEntry(name, modalities, f"{name}.onnx", (), ("y",), "onnxruntime", ())
    return OpenHead(entry, None)  # type: ignore[arg-type]


def test_the_head_of_a_set_reads_nothing_that_lacks() -> None:
    heads = {"a": open_head("a", "camera", "radar"), "b": open_head("b", "camera")}
    choose: Callable[..., Any] = choose_head
    assert choose({"lidar": "head:a"}, heads) == "a"
    assert choose({"lidar": "head:a", "radar": "zeros"}, heads) == "a"
    assert choose({"lidar": "head:a", "radar": "head:b"}, heads) == "b"
    assert choose({"lidar": "mean"}, heads) is None
    with pytest.raises(DataError, match="no head for a set without lidar, camera"):
        choose({"lidar": "head:a", "camera": "head:a"}, heads)
