"""Every error that edgemm raises on purpose.

    EdgemmError
    ├── DataError           a feed, calibration array or data file is not what the model needs
    ├── ModelError          a model file cannot be read, or loading it would run code
    ├── ExportError         torch.export or the ONNX exporter gave up
    │   └── ParityError     the exported graph does not compute what the model computes
    ├── RecipeError         a recipe or an option contradicts the model or itself
    ├── QuantizationError   no quantized variant can be made or shipped
    ├── BundleError         a bundle is damaged, unsafe, too new, or in the way
    ├── StreamError         a stream is closed, or has no set of samples to run
    ├── BusyError           a session has more calls under way than it may, or they do not end
    ├── BackendError        a backend refused an engine or failed while running it
    │   └── UnsupportedDeviceError  this machine lacks what the engine asks for
    └── MissingExtraError   an optional package is not installed

Each has a message (what, got, expected) and a hint (what to do). The command line prints both and exits
with code 1; anything that is not an EdgemmError is a bug and shows its traceback.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class EdgemmError(Exception):
    """An error with a remedy: `str(error)` is the fact, `error.hint` what to do about it."""

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint
        if hasattr(self, "add_note"):  # from Python 3.11 on, a traceback shows the hint as well
            self.add_note(f"hint: {hint}")

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), str(self), self.hint)


def _rebuild(cls: type[EdgemmError], message: str, hint: str) -> EdgemmError:
    return cls(message, hint=hint)


class DataError(EdgemmError):
    """A feed, calibration array or data file is not what the model needs."""


class ModelError(EdgemmError):
    """A model file cannot be read, or reading it would run code that was not allowed."""


class ExportError(EdgemmError):
    """torch.export or the ONNX exporter gave up; the message names the layer."""


class ParityError(ExportError):
    """The exported graph does not compute what the model computes."""


class RecipeError(EdgemmError):
    """A recipe or an option contradicts the model or itself."""


class QuantizationError(EdgemmError):
    """No quantized variant can be made or shipped."""


class BundleError(EdgemmError):
    """A bundle is damaged, unsafe, too new, or in the way."""


class StreamError(EdgemmError):
    """A stream is closed, or has no set of samples to run."""


class BusyError(EdgemmError):
    """A session has more calls under way than it may, or they do not end."""


class BackendError(EdgemmError):
    """A backend refused an engine or failed while running it."""


class UnsupportedDeviceError(BackendError):
    """This machine lacks what the engine asks for, bfloat16 arithmetic for example."""


class MissingExtraError(EdgemmError):
    """An optional package is not installed."""


def did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    """Returns a hint that names the closest known word, or `otherwise` when none is close."""
    close = get_close_matches(name, list(known), n=1)
    return f"did you mean '{close[0]}'?" if close else otherwise
