"""edgemm takes trained multimodal fusion models to the edge.

`edgemm.runtime` is the device side (numpy and the standard library only, until a session opens its backend).
`edgemm.convert` is the workstation side and needs the `convert` extra.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "convert", "open_session"]

if TYPE_CHECKING:
    from edgemm.pipeline import convert
    from edgemm.runtime import open_session

_LAZY = {"convert": "edgemm.pipeline", "open_session": "edgemm.runtime"}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        import importlib

        try:
            return getattr(importlib.import_module(_LAZY[name]), name)
        except ModuleNotFoundError as error:
            from edgemm.errors import MissingExtraError

            raise MissingExtraError(
                f"edgemm.{name} needs the package '{error.name}', which is not installed.",
                hint="pip install 'edgemm[convert,cpu]'",
            ) from error
    raise AttributeError(f"module 'edgemm' has no attribute {name!r}")
