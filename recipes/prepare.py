"""Trains what a recipe converts, once: the model and its data are found again until what makes them changes.

    python -m recipes.prepare imu              # .cache/edgemm/fixtures/imu: model.pt2, calib.npz, eval.npz
    python -m recipes.prepare imu --quick      # a few steps on a few samples, to see that it runs

`recipes/training/NAME.py` has `make(place, quick=False)`, which writes the files that `recipes/NAME.yaml` names.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import importlib
import inspect
import os
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from recipes.datasets.cache import cache_root

VERSION = "1"
"""Raised when the same name is to mean other weights or other data."""

RECIPES = Path(__file__).resolve().parent
DATA = RECIPES.parent / ".cache" / "edgemm" / "fixtures"
"""Where the recipes look for their files."""

PLUMBING = frozenset({"datasets/cache.py", "models/saving.py", "training/writing.py"})
"""How files are written, which changes nothing in them."""


def recipe_names() -> list[str]:
    """Returns the names of the recipes that are trained here, in order."""
    return sorted(
        p.stem for p in RECIPES.glob("*.yaml") if (RECIPES / "training" / p.name).with_suffix(".py").exists()
    )


def read_recipe(name: str) -> dict[str, Any]:
    """Returns the fields of `recipes/NAME.yaml` as they are written there.

    Raises:
        KeyError: There is no such recipe.
    """
    if name not in recipe_names():
        raise KeyError(f"no recipe {name!r} (recipes: {', '.join(recipe_names())})")
    fields: dict[str, Any] = yaml.safe_load((RECIPES / f"{name}.yaml").read_text(encoding="utf-8"))
    return fields


def recipe_at(name: str, place: Path) -> Path:
    """Returns the recipe file for the files at `place`: the recipe itself, or a copy there that names them.

    Args:
        name: Of a recipe.
        place: The folder that `prepare` returned.
    """
    if place.resolve() == (DATA / name).resolve():
        return RECIPES / f"{name}.yaml"
    from edgemm.recipe.paths import resolve

    home = str(RECIPES / ".." / ".cache" / "edgemm" / "fixtures" / name)
    text = yaml.safe_dump(resolve(read_recipe(name), RECIPES), sort_keys=False, allow_unicode=True)
    copy = place / "recipe.yaml"
    copy.write_text(text.replace(home, str(place.resolve())), encoding="utf-8")
    return copy


def training_digest(name: str) -> str:
    """Returns a digest of the code that makes a recipe's files; comments and docstrings are no part of it."""
    digest = hashlib.sha256(VERSION.encode())
    for file in sources(RECIPES / "training" / f"{name}.py"):
        digest.update(f"{file.relative_to(RECIPES)}\n{_code(file)}\n".encode())
    return digest.hexdigest()[:16]


def sources(file: Path) -> list[Path]:
    """Returns `file` and the files of this folder that it imports, and those that they import, in order."""
    found, waiting = set(), [file]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        waiting += [p for p in _imported(path) if p.relative_to(RECIPES).as_posix() not in PLUMBING]
    return sorted(found)


def _imported(file: Path) -> Iterator[Path]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        names: list[str] = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            path = (RECIPES.parent / name.replace(".", "/")).with_suffix(".py")
            if name.startswith("recipes.") and path.exists():
                yield path


def _code(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [s for s in body if not (isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant))]  # type: ignore[attr-defined]
    return ast.dump(tree)


@dataclass(frozen=True, slots=True)
class Way:
    """How a recipe is trained.

    Attributes:
        quick: A few steps on a few samples. What that gives is never taken for the real thing.
        data_root: Folder with the user's own copy of the data, for recipes that read one.
    """

    quick: bool = False
    data_root: Path | None = None

    @property
    def is_usual(self) -> bool:
        """Whether what comes out is what the catalogue speaks of."""
        return self == USUAL

    @property
    def mark(self) -> str:
        """What the file `complete` says."""
        own = f" {self.data_root.resolve()}" if self.data_root else ""
        return f"{VERSION}{' quick' if self.quick else ''}{own}"


USUAL = Way()
"""As the catalogue has it."""


def is_prepared(name: str, place: Path, way: Way = USUAL) -> bool:
    """Returns whether `place` has the files that `prepare` would write."""
    done, made_by = place / "complete", place / "made_by"
    if not done.exists() or done.read_text() != way.mark:
        return False
    return not made_by.exists() or made_by.read_text() == training_digest(name)


def trained_in(place: Path) -> float | None:
    """Returns how many seconds the data and the training took, or None where that was not kept."""
    file = place / "seconds"
    return float(file.read_text()) if file.exists() else None


def prepare(name: str, folder: Path | None = None, way: Way = USUAL) -> Path:
    """Returns the folder with a recipe's model and data, which are made unless they are there already.

    Args:
        name: Of a recipe.
        folder: Where the folders of the recipes are; `.cache/edgemm/fixtures` under the current directory by
            default.
        way: How it is trained.

    Raises:
        KeyError: There is no such recipe.
        RuntimeError: A package that the data need is not installed, or the recipe reads no data of the user's.
    """
    read_recipe(name)
    place = (folder or cache_root() / "fixtures") / name
    if not is_prepared(name, place, way):
        make = importlib.import_module(f"recipes.training.{name}").make
        own = {"data_root": way.data_root} if way.data_root else {}
        if own and "data_root" not in inspect.signature(make).parameters:
            raise RuntimeError(f"'{name}' has its own data and reads none from {way.data_root}.")
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        start = time.perf_counter()
        make(place, quick=way.quick, **own)
        (place / "seconds").write_text(f"{time.perf_counter() - start:.1f}")
        (place / "complete").write_text(way.mark)
    if not (place / "made_by").exists():
        (place / "made_by").write_text(training_digest(name))
    return place


def main() -> None:
    """Trains one recipe. Another number of threads gives slightly other weights."""
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # threads that wait leave the core to whoever works
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=recipe_names(), metavar="NAME")
    parser.add_argument("--folder", type=Path, help="where the files go, in a folder NAME")
    parser.add_argument("--quick", action="store_true", help="a few steps on a few samples")
    parser.add_argument("--data-root", type=Path, help="folder with your own copy of the data, where one is read")
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        print(prepare(options.name, options.folder, Way(options.quick, options.data_root)))
    except RuntimeError as error:
        sys.exit(f"{options.name}: {error}")


if __name__ == "__main__":
    main()
