"""Calls the user's model factory: `FILE.py:FUNC` or `pkg.mod:FUNC`, a function that returns an `nn.Module`."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from edgemm.errors import ModelError, did_you_mean
from edgemm.export.archive import first_line

if TYPE_CHECKING:
    from torch import nn


def call_factory(factory: str) -> nn.Module:
    """Returns the module that `factory` builds. Runs the user's code, which naming a factory asks for.

    A `FILE.py` is imported under a private name, with its folder importable for the time of the call.

    Raises:
        ModelError: The file, module or function is missing, the call fails, or what it returns is no
            `nn.Module`.
    """
    from torch import nn

    where, separator, name = factory.rpartition(":")
    if not separator or not where or not name:
        raise ModelError(
            f"--factory {factory}: expected FILE.py:FUNC or pkg.mod:FUNC.",
            hint="FUNC is a function without arguments that returns the nn.Module, for example models.py:build",
        )
    folder = Path(where).resolve().parent if where.endswith(".py") else Path.cwd()
    with importable(folder):
        module = _import_file(Path(where)) if where.endswith(".py") else _import_module(where)
        build = _attribute(module, name, factory)
        try:
            built = build()
        except Exception as error:
            raise ModelError(
                f"--factory {factory} failed: {type(error).__name__}: {first_line(error)} ({_place(error)}).",
                hint="the function is called without arguments and must return the model",
            ) from error
    if isinstance(built, type) or not isinstance(built, nn.Module):
        raise ModelError(
            f"--factory {factory} returned {_describe(built)}, expected an nn.Module.",
            hint="return the built model, without weights",
        )
    return built


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Lets modules in `folder` be imported within the block."""
    entry = str(folder)
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        if entry in sys.path:
            sys.path.remove(entry)


def _import_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModelError(f"--factory: the file {path} does not exist.", hint="check the path before the ':'")
    # A private name: the user's `model.py` must not shadow, or be shadowed by, an installed module.
    name = f"_edgemm_factory_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:16]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"--factory: {path} is no Python file.", hint="name a .py file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        sys.modules.pop(name, None)
        raise ModelError(
            f"--factory: importing {path} failed: {type(error).__name__}: {first_line(error)} ({_place(error)}).",
            hint="run the file with Python to see the whole error",
        ) from error
    return module


def _import_module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise ModelError(
            f"--factory: importing the module '{name}' failed: {type(error).__name__}: {first_line(error)}.",
            hint="install it, or name a file: path/to/file.py:FUNC",
        ) from error


def _attribute(module: ModuleType, name: str, factory: str) -> Callable[[], Any]:
    found: Any = module
    for part in name.split("."):
        found = getattr(found, part, None)
    if callable(found):
        build: Callable[[], Any] = found
        return build
    functions = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
    raise ModelError(
        f"--factory {factory}: there is no function '{name}'.",
        hint=did_you_mean(name, functions, f"functions there: {', '.join(functions[:8]) or 'none'}"),
    )


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return "unknown line"
    return f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"


def _describe(value: object) -> str:
    if isinstance(value, type):
        return f"the class {value.__name__} instead of an instance of it"
    return "None" if value is None else f"a {type(value).__name__}"
