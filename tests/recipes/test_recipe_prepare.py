"""What counts as a change of a recipe's training, and how its files are found elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

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


def test_recipe_elsewhere_names_the_files_there(project: Path, tmp_path: Path) -> None:
    assert p.recipe_at("one", p.DATA / "one") == project / "one.yaml"
    (tmp_path / "x").mkdir()
    copy = yaml.safe_load(p.recipe_at("one", tmp_path / "x").read_text())
    assert copy["model"]["path"] == str(tmp_path / "x" / "model.pt2")
    assert copy["model"]["factory"] == f"{project / 'models' / 'net.py'}:build"
    assert copy["data"] == {"calib": str(tmp_path / "x" / "calib.npz"), "label": "label"}


def test_a_quick_run_is_never_taken_for_the_real_thing(project: Path, tmp_path: Path) -> None:
    place = tmp_path / "one"
    place.mkdir()
    (place / "complete").write_text(p.VERSION)
    assert p.is_prepared("one", place)
    assert not p.is_prepared("one", place, p.Way(quick=True))
    (place / "complete").write_text(f"{p.VERSION} quick")
    assert not p.is_prepared("one", place)
    assert p.is_prepared("one", place, p.Way(quick=True))


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


def test_recipe_that_reads_no_data_of_the_users_says_so(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"'imu' has its own data and reads none from .*x\."):
        p.prepare("imu", tmp_path, p.Way(data_root=tmp_path / "x"))
    assert not (tmp_path / "imu").exists()
