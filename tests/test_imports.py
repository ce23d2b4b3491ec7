"""What an import pulls in, and a command line that helps where next to nothing is installed.

After a deliberate change of a help text: `EDGEMM_UPDATE_GOLDEN=1 pytest tests/test_imports.py`, and read the diff.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from edgemm.cli import VERBS

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = Path(__file__).parent / "golden"

OPTIONAL = ["torch", "onnx", "onnx_ir", "onnxscript", "onnxruntime", "pydantic", "yaml", "sklearn", "safetensors"]
OPTIONAL += ["ml_dtypes", "tensorrt", "transformers", "scipy"]

NEW_MODULES = """
import importlib, json, sys
before = set(sys.modules)
{statement}
names = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(json.dumps(sorted(names - set(sys.stdlib_module_names))))
"""

BLOCKED = """
import sys
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BLOCKED:
            raise ImportError(f"blocked: {name}")
sys.meta_path.insert(0, Block())
from edgemm.cli import main
main(sys.argv[1:])
"""


def python(code: str, *args: str, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """Runs `code` where the packages in `without` do not import."""
    code = f"BLOCKED = {list(without)!r}\n{code}"
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False, env=env
    )


@pytest.mark.parametrize(
    ("statement", "allowed"),
    [
        ("import edgemm", {"edgemm"}),
        ("import edgemm; edgemm.__version__", {"edgemm"}),
        ("import edgemm.errors", {"edgemm"}),
        ("from edgemm import open_session", {"edgemm", "numpy"}),
        ("import edgemm.cli", {"edgemm", "click"}),
        *((f"import edgemm.cli.{verb}", {"edgemm", "click", "numpy"}) for verb in VERBS),
    ],
)
def test_import_pulls_in(statement: str, allowed: set[str]) -> None:
    done = python(NEW_MODULES.format(statement=statement))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = {name for name in json.loads(done.stdout) if name != "cython_runtime" and not name.startswith("_cy")}
    assert found <= allowed


def test_both_lazy_names_are_there() -> None:
    import edgemm
    from edgemm import pipeline, runtime

    assert edgemm.convert is pipeline.convert
    assert edgemm.open_session is runtime.open_session
    with pytest.raises(AttributeError, match="has no attribute 'covnert'"):
        _ = edgemm.covnert


@pytest.mark.parametrize("args", [("--help",), ("convert", "--help")])
def test_help_word_for_word_without_any_optional_package(args: tuple[str, ...]) -> None:
    done = python(BLOCKED, *args, without=[*OPTIONAL, "rich", "numpy"])
    assert (done.returncode, done.stderr) == (0, "")
    name = "edgemm" if len(args) == 1 else f"edgemm_{args[0]}"
    path = GOLDEN / f"help_{name}.txt"
    if os.environ.get("EDGEMM_UPDATE_GOLDEN"):
        path.write_text(done.stdout)
    assert done.stdout == path.read_text()
    assert max(map(len, done.stdout.splitlines())) <= 100


@pytest.mark.parametrize("verb", VERBS)
def test_every_help_works_without_any_optional_package(verb: str) -> None:
    done = python(BLOCKED, verb, "--help", without=[*OPTIONAL, "rich"])
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith(f"Usage: edgemm {verb}")


def test_missing_package_is_named_with_its_remedy(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    done = python(BLOCKED, "convert", str(tmp_path / "model.onnx"), without=OPTIONAL)
    assert done.returncode == 1
    error, hint = done.stderr.splitlines()
    assert error.startswith("error: the package 'pydantic' is needed to convert a model")
    assert hint == "hint:  pip install 'edgemm[convert]'"
