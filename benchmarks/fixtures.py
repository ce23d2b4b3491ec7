"""Trained models with their data, for benchmarks and slow tests; built once, then found in the cache.

    python benchmarks/fixtures.py all
    python benchmarks/fixtures.py av_digits imu --folder .cache/edgemm/fixtures

Three kinds: the models of `recipes/`, ONNX files that other projects ship, and tiny untrained models of
`transformers` (`hf_*`) whose graphs are what matters. `build` knows every recipe by name; those in `FIXTURES` are
what benchmarks and tests go through.
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

from recipes.datasets import foreign
from recipes.datasets.cache import cache_root
from recipes.models import hf_tiny
from recipes.models.saving import save_weights
from recipes.prepare import VERSION, prepare, read_recipe, recipe_at, recipe_names
from recipes.training.writing import save_data

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True, slots=True)
class Fixture:
    """A model file with the data to convert it.

    Attributes:
        name: Of `FIXTURES`.
        model: `.pt2`, `.pt` (a state_dict) or `.onnx`.
        calib: Samples for calibration and search, `.npz`.
        eval: Samples that neither training nor calibration has seen, `.npz`.
        label: Label array of both, or None when the model has no task.
        metric: The task's metric, or None with `label`.
        options: What else `edgemm convert` needs.
        recipe: Recipe file that `edgemm convert` takes instead of all this.
    """

    name: str
    model: Path
    calib: Path
    eval: Path
    label: str | None = None
    metric: str | None = None
    options: tuple[str, ...] = ()
    recipe: Path | None = None

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `edgemm convert`, without the output."""
        if self.recipe:
            return (str(self.recipe),)
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
        name: Of `FIXTURES`, or a recipe.
        folder: Where fixtures live; `.cache/edgemm/fixtures` under the current directory by default.

    Raises:
        KeyError: There is no such fixture.
        RuntimeError: A package that it needs is not installed.
    """
    if name in recipe_names():
        return _of_recipe(name, prepare(name, folder))
    maker = OTHERS[name]
    place = (folder or cache_root() / "fixtures") / name
    done = place / "complete"
    if done.exists() and done.read_text() == VERSION:
        return replace(maker(place, False), name=name)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    fixture = replace(maker(place, True), name=name)
    done.write_text(VERSION)
    return fixture


def _of_recipe(name: str, place: Path) -> Fixture:
    """Returns a recipe's files: by themselves where a program says all of the model, else with the recipe."""
    fields = read_recipe(name)
    model, data = place / Path(fields["model"]["path"]).name, fields["data"]
    metric = fields["evaluate"].get("metric")
    if name in FIXTURES:
        return _at(place, place / "model.pt2", name=name, label=data["label"], metric=metric)
    return _at(place, model, name=name, label=data.get("label"), metric=metric, recipe=recipe_at(name, place))


def _at(place: Path, model: Path, **more: object) -> Fixture:
    return Fixture(**{"name": "", **more}, model=model, calib=place / "calib.npz", eval=place / "eval.npz")  # type: ignore[arg-type]


def _riann(place: Path, make: bool) -> Fixture:
    if make:
        save_data(place, foreign.attitude())
    return _at(place, foreign.model_file("riann", "riann/riann.onnx"), options=("--state", "h0=hn"))


def _voice_filter(place: Path, make: bool) -> Fixture:
    if make:
        save_data(place, foreign.voice_filter())
    model = foreign.model_file("open-voicefilter-lite", "voicefilter_lite/models/voicefilter_lite.int8.onnx")
    return _at(place, model, options=("--state", "h0=hN", "--state", "c0=cN"))


def _wake_word(part: str, file: str, **more: object) -> Maker:
    def make_wake_word(place: Path, make: bool) -> Fixture:
        if make:
            save_data(place, foreign.wake_word()[part])
        model = foreign.model_file("openwakeword", f"openwakeword/resources/models/{file}.onnx")
        return _at(place, model, **more)

    return make_wake_word


def _transformers(name: str) -> Maker:
    def make_transformers(place: Path, make: bool) -> Fixture:
        if make:
            model = hf_tiny.FACTORIES[name]()
            save_weights(model, place / "model.pt")
            save_data(
                place, {"calib": hf_tiny.sample_inputs(name, 64), "eval": hf_tiny.sample_inputs(name, 64, 1)}
            )
        factory = f"{ROOT / 'recipes' / 'models' / 'hf_tiny.py'}:{name}"
        return _at(place, place / "model.pt", options=("--factory", factory))

    return make_transformers


Maker = Callable[[Path, bool], Fixture]
"""Called with the fixture's folder and whether it must write its files there."""

OTHERS: Mapping[str, Maker] = {
    "riann": _riann,
    "voice_filter": _voice_filter,
    "wake_mel": _wake_word("mel", "melspectrogram"),
    "wake_embedding": _wake_word("embedding", "embedding_model"),
    "wake_word": _wake_word("word", "hey_jarvis_v0.1", label="label", metric="auroc"),
    **{f"hf_{name}": _transformers(name) for name in hf_tiny.FACTORIES},
}
"""Fixtures that no recipe makes."""

FIXTURES = ("imu", "av_digits", "av_gru", "av_attention", "review_image", *OTHERS)
"""What benchmarks and tests go through, by name."""


def main() -> None:
    """Builds the named fixtures and prints where they are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=["all", *FIXTURES, *recipe_names()], metavar="NAME")
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
