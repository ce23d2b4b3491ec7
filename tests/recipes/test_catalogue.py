"""The catalogue in `recipes/README.md` is what the recipes and their results say, and nothing else."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from recipes import catalogue as c

RECORD = {
    "recipe": "both",
    "trained": "1",
    "modalities": ["audio", "image"],
    "metric": "metrics.py:word_accuracy",
    "accuracy": {"float": 0.91, "variant": 0.9, "drop": 0.01, "budget": 0.02},
    "latency": {"float_ms": 1.0, "variant_ms": 0.5, "ratio": 0.5},
    "size": {"float_bytes": 100, "edge_bytes": 40, "ratio": 0.4},
    "ships": {"precision": "int8"},
    "also": {"f1_macro": 0.5},
}
RECIPE = "about: {task: words, fusion: concat, data: of a | b, synthetic: true}\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "both.yaml").write_text(RECIPE)
    (tmp_path / "both.json").write_text(json.dumps(RECORD))
    return tmp_path


def test_every_recipe_has_a_row_and_every_row_a_recipe() -> None:
    _, _, rest = c.PAGE.read_text(encoding="utf-8").partition(c.BEGIN)
    table, end, _ = rest.partition(c.END)
    assert end
    named = re.findall(r"^\| \[`(\w+)`\]\((\w+)\.yaml\)", table, re.MULTILINE)
    assert [row for row, _ in named] == [file for _, file in named]
    assert [row for row, _ in named] == sorted(p.stem for p in c.RECIPES.glob("*.yaml"))


def test_table_is_what_would_be_written() -> None:
    page = c.PAGE.read_text(encoding="utf-8")
    assert c.with_catalogue(page, c.page_part()) == page, "run python -m recipes.catalogue"


def test_every_result_is_of_a_recipe() -> None:
    assert {p.stem for p in c.RESULTS.glob("*.json")} <= {p.stem for p in c.RECIPES.glob("*.yaml")}


def test_a_row_says_what_was_measured_and_that_data_are_synthetic(folder: Path) -> None:
    row = c.catalogue(folder, folder).splitlines()[-1]
    assert "| audio, image | concat | **synthetic**: of a / b |" in row
    assert (
        "| word_accuracy 91.0% | 90.0% int8, f1_macro 0.5 | 0.50 | 0.40 | `python -m recipes.make both` |" in row
    )


def test_what_a_silent_modality_costs_is_a_table_of_its_own(folder: Path) -> None:
    (folder / "both.json").write_text(json.dumps(RECORD | {"blank": {"audio": 0.5, "image": 0.7}}))
    assert c.blanks(folder).splitlines()[-1] == "| `both` | word_accuracy 91.0% | audio 50.0%, image 70.0% |"
    (folder / "both.json").write_text(json.dumps(RECORD))
    assert len(c.blanks(folder).splitlines()) == 2


def test_what_was_not_measured_is_a_dash(folder: Path) -> None:
    (folder / "both.json").unlink()
    assert "| – | – | – | – |" in c.catalogue(folder, folder)


def test_quick_runs_are_no_results(folder: Path) -> None:
    (folder / "both.json").write_text(json.dumps(RECORD | {"trained": "1 quick"}))
    with pytest.raises(ValueError, match="quick run"):
        c.catalogue(folder, folder)


def test_a_recipe_must_say_what_it_shows(folder: Path) -> None:
    (folder / "both.yaml").write_text("model: {path: m.pt2}\n")
    with pytest.raises(ValueError, match="no section `about`"):
        c.catalogue(folder, folder)


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ValueError, match="lacks one of the lines"):
        c.with_catalogue(f"# Recipes\n{c.END}\n{c.BEGIN}\n", "| |\n")
