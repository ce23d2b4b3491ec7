"""Trained models with their data, for benchmarks and slow tests; built once, then found in the cache.

    python benchmarks/fixtures.py all
    python benchmarks/fixtures.py av_digits imu --folder .cache/edgemm/fixtures

Four kinds: models trained here on real data, a model around a published text encoder, ONNX files that other
projects ship, and tiny untrained models of `transformers` (`hf_*`) whose graphs are what matters.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from recipes.datasets import av_digits, foreign, imu, reviews
from recipes.datasets.cache import Arrays, cache_root, save_arrays
from recipes.models import av_attention, av_gru, hf_tiny, review_image
from recipes.models import av_digits as av_digits_model
from recipes.models import imu as imu_model
from recipes.models.saving import save_program, save_weights

ROOT = Path(__file__).resolve().parents[1]
VERSION = "1"
"""Raised when the same name is to mean other weights or other data."""


@dataclass(frozen=True, slots=True)
class Fixture:
    """A model file with the data to convert it.

    Attributes:
        name: Key of `FIXTURES`.
        model: `.pt2`, `.pt` (a state_dict) or `.onnx`.
        calib: Samples for calibration and search, `.npz`.
        eval: Samples that neither training nor calibration has seen, `.npz`.
        label: Label array of both, or None when the model has no task.
        metric: The task's metric, or None with `label`.
        options: What else `edgemm convert` needs.
    """

    name: str
    model: Path
    calib: Path
    eval: Path
    label: str | None = None
    metric: str | None = None
    options: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `edgemm convert`, without the output."""
        task = ("--label", self.label) if self.label else ()
        metric = ("--metric", self.metric) if self.metric else ()
        data = ("--calib", str(self.calib), "--eval", str(self.eval))
        return (str(self.model), *data, *task, *metric, *self.options)

    def convert_command(self, output: Path, *options: str) -> list[str]:
        """Returns the command that converts this fixture to the bundle `output` and prints JSON."""
        start = [sys.executable, "-m", "edgemm", "convert"]
        return [*start, *self.arguments, "-o", str(output), "--json", *options]


def build(name: str, folder: Path | None = None) -> Fixture:
    """Returns the fixture called `name`, built in `folder/name` unless it is there already.

    Args:
        name: Key of `FIXTURES`.
        folder: Where fixtures live; `.cache/edgemm/fixtures` under the current directory by default.

    Raises:
        KeyError: There is no such fixture.
        RuntimeError: A package that it needs is not installed.
    """
    maker = FIXTURES[name]
    place = (folder or cache_root() / "fixtures") / name
    done = place / "complete"
    if done.exists() and done.read_text() == VERSION:
        return replace(maker(place, False), name=name)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    fixture = replace(maker(place, True), name=name)
    done.write_text(VERSION)
    return fixture


def _at(place: Path, model: Path, **more: object) -> Fixture:
    return Fixture("", model, place / "calib.npz", place / "eval.npz", **more)  # type: ignore[arg-type]


def _save(place: Path, splits: Mapping[str, Arrays]) -> None:
    for split in ("calib", "eval"):
        save_arrays(place / f"{split}.npz", splits[split])


def _tensors(arrays: Arrays) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _imu(place: Path, make: bool) -> Fixture:
    if make:
        splits = {"calib": imu.load("TRAIN"), "eval": imu.load("TEST")}
        model = imu_model.build()
        imu_model.train(model, _tensors(splits["calib"]))
        _save(place, splits)
        save_program(model, {n: splits["calib"][n] for n in ("accel", "gyro")}, place / "model.pt2")
    return _at(place, place / "model.pt2", label="label", metric="accuracy")


def _digits(factory: Callable[[], torch.nn.Module], rate: float, epochs: int) -> Maker:
    def make_digits(place: Path, make: bool) -> Fixture:
        if make:
            splits, model = av_digits.load(), factory()
            av_digits_model.train(model, _tensors(splits["train"]), rate=rate, epochs=epochs, report=_note)
            for without in ("", "image", "audio"):
                score = av_digits_model.accuracy(model, _tensors(splits["eval"]), without=without)
                _note(f"accuracy {score:.2%}" + (f" without {without}" if without else ""))
            _save(place, splits)
            save_program(model, {n: splits["calib"][n] for n in ("image", "audio")}, place / "model.pt2")
            save_weights(model, place / "model.pt")
        return _at(place, place / "model.pt2", label="label", metric="accuracy")

    return make_digits


def _review_image(place: Path, make: bool) -> Fixture:
    if make:
        splits = reviews.load(review_image.minilm_folder() / "tokenizer.json")
        model = review_image.build()
        review_image.train(model, _tensors(splits["train"]), report=_note)
        _save(place, splits)
        inputs = ("image", "input_ids", "attention_mask")
        save_program(model, {n: splits["calib"][n] for n in inputs}, place / "model.pt2")
    return _at(place, place / "model.pt2", label="label", metric="accuracy")


def _riann(place: Path, make: bool) -> Fixture:
    if make:
        _save(place, foreign.attitude())
    return _at(place, foreign.model_file("riann", "riann/riann.onnx"), options=("--state", "h0=hn"))


def _voice_filter(place: Path, make: bool) -> Fixture:
    if make:
        _save(place, foreign.voice_filter())
    model = foreign.model_file("open-voicefilter-lite", "voicefilter_lite/models/voicefilter_lite.int8.onnx")
    return _at(place, model, options=("--state", "h0=hN", "--state", "c0=cN"))


def _wake_word(part: str, file: str, **more: object) -> Maker:
    def make_wake_word(place: Path, make: bool) -> Fixture:
        if make:
            _save(place, foreign.wake_word()[part])
        model = foreign.model_file("openwakeword", f"openwakeword/resources/models/{file}.onnx")
        return _at(place, model, **more)

    return make_wake_word


def _transformers(name: str) -> Maker:
    def make_transformers(place: Path, make: bool) -> Fixture:
        if make:
            model = hf_tiny.FACTORIES[name]()
            save_weights(model, place / "model.pt")
            _save(place, {"calib": hf_tiny.sample_inputs(name, 64), "eval": hf_tiny.sample_inputs(name, 64, 1)})
        factory = f"{ROOT / 'recipes' / 'models' / 'hf_tiny.py'}:{name}"
        return _at(place, place / "model.pt", options=("--factory", factory))

    return make_transformers


Maker = Callable[[Path, bool], Fixture]
"""Called with the fixture's folder and whether it must write its files there."""

FIXTURES: Mapping[str, Maker] = {
    "imu": _imu,
    "av_digits": _digits(av_digits_model.build, 3e-3, 5),
    "av_gru": _digits(av_gru.build, 3e-3, 8),
    "av_attention": _digits(av_attention.build, 2e-3, 10),
    "review_image": _review_image,
    "riann": _riann,
    "voice_filter": _voice_filter,
    "wake_mel": _wake_word("mel", "melspectrogram"),
    "wake_embedding": _wake_word("embedding", "embedding_model"),
    "wake_word": _wake_word("word", "hey_jarvis_v0.1", label="label", metric="auroc"),
    **{f"hf_{name}": _transformers(name) for name in hf_tiny.FACTORIES},
}
"""Every fixture by name."""


def _note(line: str) -> None:
    print(f"  {line}", file=sys.stderr)


def main() -> None:
    """Builds the named fixtures and prints where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=["all", *FIXTURES], metavar="NAME")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    for name in FIXTURES if "all" in options.names else options.names:
        start = time.perf_counter()
        print(name, file=sys.stderr)
        fixture = build(name, options.folder)
        with np.load(fixture.eval) as data:
            samples = len(data[data.files[0]])
        size = fixture.model.stat().st_size / 1e6
        seconds = time.perf_counter() - start
        print(f"{name}: {fixture.model} ({size:.2f} MB), {samples} evaluation samples, {seconds:.0f} s")


if __name__ == "__main__":
    main()
