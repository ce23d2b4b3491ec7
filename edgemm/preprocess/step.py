"""What every step is and does; how several make one way from raw data to an input of the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from edgemm.errors import DataError, RecipeError
from edgemm.tensors import TensorSpec


class Step(Protocol):
    """One step; see the package for what it promises. Its dataclass fields are its options in a recipe."""

    def apply(self, batch: np.ndarray) -> np.ndarray:
        """Returns what the step makes of raw data `[B, ...]`: the reference, which the graph must compute too."""
        ...

    def output(self, spec: TensorSpec) -> TensorSpec:
        """Returns dtype and shape of what comes out of what goes in.

        Raises:
            DataError: It does not fit the step.
        """
        ...


def blank_of(steps: Sequence[Step]) -> str:
    """Returns what the sensor in front of steps gives when it is silent: `blank` of the first step, else zeros."""
    return str(getattr(steps[0], "blank", "zeros")) if steps else "zeros"


def name_of(step: Step) -> str:
    """Returns the name of a step in recipes, from its class: `CenterCrop` is `center_crop`."""
    text = type(step).__name__
    return "".join(f"_{c.lower()}" if c.isupper() and i else c.lower() for i, c in enumerate(text))


def expect(holds: bool, step: Step, option: str, expected: str) -> None:
    """Checks an option of a step, in `__post_init__`.

    Raises:
        RecipeError: `holds` is false; with the option, what it is and what was expected.
    """
    if not holds:
        got: Any = getattr(step, option)
        got = list(got) if isinstance(got, tuple) else got
        raise RecipeError(
            f"preprocess: {name_of(step)}: {option} is {got!r}, expected {expected}.",
            hint="docs/preprocessing.md lists the steps and their options",
        )


def refuse(step: Step, spec: TensorSpec, expected: str, hint: str) -> DataError:
    """Returns what to say of data that a step cannot take, to be raised.

    Args:
        step: The step.
        spec: What it was given; without a name where the step does not know it.
        expected: What it takes: `"uint8 images [batch, height, width, 3]"`.
        hint: What to do.
    """
    shape = ", ".join(map(str, spec.shape))
    where = f"input '{spec.name}': " if spec.name else ""
    return DataError(
        f"{where}the step '{name_of(step)}' got {spec.dtype} [{shape}], expected {expected}.", hint=hint
    )


def output_of(steps: Sequence[Step], raw: TensorSpec) -> TensorSpec:
    """Returns what comes out of the last step when `raw` goes into the first.

    Raises:
        DataError: A step does not take what the one before it gives.
    """
    for step in steps:
        raw = step.output(raw)
    return raw


def run(steps: Sequence[Step], batch: np.ndarray) -> np.ndarray:
    """Returns what the steps make of raw data `[B, ...]`, as a C-contiguous array."""
    for step in steps:
        batch = step.apply(batch)
    return np.ascontiguousarray(batch)
