"""A large model is exported by a process of its own: the same graph, the same words, and no torch left here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from edgemm.data import open_samples
from edgemm.errors import EdgemmError, ExportError
from edgemm.export.request import ExportResult
from edgemm.graph import digest
from edgemm.pipeline import exporting
from edgemm.pipeline.progress import Clock
from edgemm.recipe import build_recipe


class Heard:
    """A `Progress` that keeps what it was told."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def bar(self, step: str, done: int, total: int) -> None:
        """Ignored."""

    def status(self, step: str, text: str) -> None:
        """Keeps it."""
        self.lines.append((step, text))

    step = status


@pytest.fixture
def exported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Exports a recipe, here or apart; returns the result and what was said."""

    def call(apart: bool, **sections: Any) -> tuple[ExportResult, list[tuple[str, str]], Clock]:
        monkeypatch.setattr(exporting, "LARGE", 0 if apart else 2**60)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        folder.mkdir()
        recipe, heard, clock = build_recipe(sections, where="recipe"), Heard(), Clock()
        samples = open_samples(recipe.data.calib) if recipe.data.calib else None
        return exporting.export(recipe, samples, folder, heard, clock), heard.lines, clock

    return call


@pytest.fixture
def sections(trained_folder: Path) -> dict[str, Any]:
    """The trained model with its samples."""
    return {
        "model": {"path": trained_folder / "model.pt2"},
        "data": {"calib": str(trained_folder / "calib.npz")},
    }


def test_another_process_exports_the_same(exported: Any, sections: dict[str, Any]) -> None:
    here, said_here, _ = exported(False, **sections)
    apart, said_apart, clock = exported(True, **sections)
    assert digest(apart.graph.model) == digest(here.graph.model)
    assert (apart.graph.io, apart.dynamic, apart.notes) == (here.graph.io, here.dynamic, here.notes)
    assert dict(apart.graph.provenance) == dict(here.graph.provenance)
    assert apart.parity.to_json() == here.parity.to_json()
    assert said_apart == said_here
    assert clock.seconds["load"] > 0
    assert clock.seconds["export"] > 0


def test_an_error_comes_back_as_it_was(exported: Any, sections: dict[str, Any]) -> None:
    wrong = sections | {"inputs": {"image": {"shape": ["batch", 5, 5]}}}
    errors = []
    for apart in (False, True):
        with pytest.raises(EdgemmError) as caught:
            exported(apart, **wrong)
        errors.append((type(caught.value), str(caught.value), caught.value.hint))
    assert errors[0] == errors[1]
    assert errors[0][0] is not EdgemmError


def test_a_factory_is_found_and_may_print(
    exported: Any, sections: dict[str, Any], trained_folder: Path, tmp_path: Path
) -> None:
    net = tmp_path / "printing.py"
    net.write_text((trained_folder / "net.py").read_text() + "\nprint('a line on stdout')\n")
    model = {"path": trained_folder / "model.pt", "factory": f"{net}:ImageAudio"}
    result, said, _ = exported(True, **(sections | {"model": model}))
    assert result.parity.cosine > 0.9999
    assert said[0][0] == "load"


def test_a_process_that_dies_is_told(exported: Any, sections: dict[str, Any], tmp_path: Path) -> None:
    net = tmp_path / "dying.py"
    net.write_text("import os\n\ndef build():\n    os._exit(7)\n")
    model = {"path": sections["model"]["path"].with_name("model.pt"), "factory": f"{net}:build"}
    with pytest.raises(ExportError, match=r"model\.pt: .*status 7"):
        exported(True, **(sections | {"model": model}))
