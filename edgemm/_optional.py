"""Optional packages, loaded when they are needed and named with their remedy when they are missing."""

from __future__ import annotations

import importlib
import importlib.util
from typing import Any

from edgemm.errors import MissingExtraError


def require(module: str, *, extra: str, why: str) -> Any:
    """Returns the imported `module`.

    Args:
        module: Import name, for example `"onnx"`.
        extra: The edgemm extra that installs it, for example `"convert"`.
        why: What it is needed for, to complete "is needed to ...".

    Raises:
        MissingExtraError: The module is not installed, or is installed and does not import.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:
        raise MissingExtraError(
            f"the package '{module}' is needed to {why} and does not import: {error}",
            hint=f"pip install 'edgemm[{extra}]'",
        ) from error


def installed(module: str) -> bool:
    """Returns whether `module` can be found, without importing it."""
    return importlib.util.find_spec(module) is not None
