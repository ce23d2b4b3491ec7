"""What counts as a change of a recipe's training, and how its files are found elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes import prepare as p


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of recipes with one recipe, whose model imports another file."""
    recipes = tmp_path / "recipes"
    files = {
        "one.yaml": "model: {path: ../.cache/edgemm/fixtures/one/model.pt2, factory: models/net.py:build}\n"
        "data: {calib: ../.cache/edgemm/fixtures/one/calib.npz, label: label}\n",
        "training/one.py": "from recipes.models import net\nfrom recipes.datasets.cache import x\n",
        "models/net.py": '"""A net."""\nimport recipes.models.layers\nWIDTH = 4\n',
        "models/layers.py": "DEPTH = 2\n",
        "models/other.py": "",
        "datasets/cache.py": "x = 1\n",
    }
    for name, text in files.items():
        (recipes / name).parent.mkdir(parents=True, exist_ok=True)
        (recipes / name).write_text(text)
    monkeypatch.setattr(p, "RECIPES", recipes)
    monkeypatch.setattr(p, "DATA", tmp_path / ".cache" / "edgemm" / "fixtures")
    return recipes


def test_sources_are_what_training_imports(project: Path) -> None:
    found = [file.relative_to(project).as_posix() for file in p.sources(project / "training" / "one.py")]
    assert found == ["models/layers.py", "models/net.py", "training/one.py"]


@pytest.mark.parametrize(
    ("file", "text", "same"),
    [
        ("models/net.py", "import recipes.models.layers  # the layers\nWIDTH = (4)\n", True),
        ("models/net.py", "import recipes.models.layers\nWIDTH = 5\n", False),
        ("models/layers.py", "DEPTH = 3\n", False),
        ("models/other.py", "DEPTH = 3\n", True),
        ("datasets/cache.py", "x = 2\n", True),
    ],
)
def test_digest_follows_the_code(project: Path, file: str, text: str, same: bool) -> None:
    before = p.training_digest("one")
    (project / file).write_text(text)
    assert (p.training_digest("one") == before) is same


def test_files_elsewhere_are_given_to_the_command(project: Path, tmp_path: Path) -> None:
    recipe = str(project / "one.yaml")
    assert p.convert_arguments("one", p.DATA / "one") == [recipe]
    moved = ["--set", f"model.path={tmp_path / 'x/model.pt2'}", "--set", f"data.calib={tmp_path / 'x/calib.npz'}"]
    assert p.convert_arguments("one", tmp_path / "x") == [recipe, *moved]


def test_a_quick_run_is_never_taken_for_the_real_thing(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "one"
    place.mkdir()
    (place / "complete").write_text(p.VERSION)
    assert p.is_prepared("one", place)
    assert not p.is_prepared("one", place, quick=True)
    (place / "complete").write_text(f"{p.VERSION} quick")
    assert not p.is_prepared("one", place)
    assert p.is_prepared("one", place, quick=True)


def test_changed_training_is_trained_again(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "one"
    place.mkdir()
    (place / "complete").write_text(p.VERSION)
    (place / "made_by").write_text(p.training_digest("one"))
    assert p.is_prepared("one", place)
    (project / "models" / "net.py").write_text("WIDTH = 5\n")
    assert not p.is_prepared("one", place)


def test_unknown_recipe_is_named(project: Path) -> None:
    with pytest.raises(KeyError, match=r"no recipe 'two' \(recipes: one\)"):
        p.read_recipe("two")
