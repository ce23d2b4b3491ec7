"""What crosses the border of an engine: names, dtypes, places; and which profile takes which shapes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import log
from pathlib import Path
from typing import Any

import numpy as np

from edgemm.errors import BackendError, DataError
from edgemm.runtime._cuda.dtypes import STORED
from edgemm.runtime._trt.module import dtype_name, has
from edgemm.runtime._trt.sidecar import OptimizationProfile, Sidecar
from edgemm.runtime.onnx_signature import read_signature
from edgemm.tensors import ShapeRange, TensorSpec


@dataclass(frozen=True, slots=True)
class Border:
    """An input or output of an engine.

    Attributes:
        spec: As the graph declares it.
        dtype: As the engine has it: int32 where TensorRT 8 has no int64.
        on_host: Whether TensorRT reads or writes it in host memory (shapes).
    """

    spec: TensorSpec
    dtype: str
    on_host: bool = False

    @property
    def name(self) -> str:
        """Name of the tensor."""
        return self.spec.name


def read_borders(
    trt: Any, engine: Any, sidecar: Sidecar, file: Path
) -> tuple[tuple[Border, ...], tuple[Border, ...]]:
    """Returns inputs and outputs of `engine` in the sidecar's order.

    Raises:
        BackendError: The engine has others than its sidecar says, or one of a packed dtype.
    """
    has_it: dict[str, tuple[str, str, bool]] = {}
    for index in range(engine.num_io_tensors):
        name = engine.get_tensor_name(index)
        mode, location = engine.get_tensor_mode(name).name, engine.get_tensor_location(name).name
        has_it[name] = mode, dtype_name(engine.get_tensor_dtype(name)), location == "HOST"
    declared = {} if has(trt, "DataType.INT64") else _declared(file)
    borders: dict[str, list[Border]] = {"INPUT": [], "OUTPUT": []}
    for mode, specs in (("INPUT", sidecar.inputs), ("OUTPUT", sidecar.outputs)):
        for spec in specs:
            if has_it.pop(spec.name, ("",))[:2] != (mode, spec.dtype):
                raise _other(file, f"no {mode.lower()} {spec}")
            if spec.dtype not in STORED:
                raise BackendError(
                    f"engine '{file.name}': {mode.lower()} '{spec.name}' is {spec.dtype}, which has no array.",
                    hint="keep packed dtypes inside of the graph",
                )
            on_host = engine.get_tensor_location(spec.name).name == "HOST"
            dtype = declared.get(spec.name, spec.dtype) if spec.dtype == "int32" else spec.dtype
            borders[mode].append(Border(replace(spec, dtype=dtype), spec.dtype, on_host))
    if has_it:
        raise _other(file, f"more tensors ({', '.join(sorted(has_it))})")
    if engine.num_optimization_profiles != max(1, len(sidecar.profiles)):
        raise _other(file, f"{engine.num_optimization_profiles} optimization profiles")
    return tuple(borders["INPUT"]), tuple(borders["OUTPUT"])


def choose_profile(
    profiles: Sequence[OptimizationProfile],
    borders: Sequence[Border],
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, np.ndarray],
) -> int:
    """Returns the index of the profile for these shapes: of those that take them the one with the nearest optimum.

    Args:
        profiles: Of the engine.
        borders: Its inputs.
        shapes: Input -> shape.
        values: Input that is a shape itself -> what is in it.

    Raises:
        DataError: No profile takes them; the message names the input, what it is, and what is allowed.
    """
    for border in borders:
        _check_fixed(border.spec, shapes[border.name])
    fitting = [i for i, p in enumerate(profiles) if _misfit(p, shapes, values) is None]
    if fitting:
        return min(fitting, key=lambda i: (_distance(profiles[i], shapes), i))
    if not profiles:
        return 0
    misfits = [_misfit(p, shapes, values) for p in profiles]
    wrong = {name for name in misfits if name is not None}
    name = next(
        (
            b.name
            for b in borders
            if b.name in wrong and all(_refuses(p, b.name, shapes, values) for p in profiles)
        ),
        None,
    )
    together = name is None
    name = name or next(iter(wrong))
    got = list(shapes[name]) if name not in values else values[name].ravel().tolist()
    allowed = " or ".join(dict.fromkeys(_ranges(p, name, name in values) for p in profiles))
    raise DataError(
        f"input '{name}': got {'shape ' if name not in values else ''}{got}, the engine takes {allowed}"
        + (", and no profile takes it together with the other inputs." if together else "."),
        hint="feed sizes in this range, or convert the model with data that has such sizes",
    )


def _check_fixed(spec: TensorSpec, shape: tuple[int, ...]) -> None:
    if len(shape) != len(spec.shape) or any(
        isinstance(want, int) and got != want for got, want in zip(shape, spec.shape, strict=True)
    ):
        raise DataError(
            f"input '{spec.name}': got shape {list(shape)}, expected {list(spec.shape)}.",
            hint="the sizes without a name were fixed when the engine was built",
        )


def _misfit(
    profile: OptimizationProfile, shapes: Mapping[str, tuple[int, ...]], values: Mapping[str, np.ndarray]
) -> str | None:
    return next((n for n in (*profile.shapes, *profile.values) if _refuses(profile, n, shapes, values)), None)


def _refuses(
    profile: OptimizationProfile,
    name: str,
    shapes: Mapping[str, tuple[int, ...]],
    values: Mapping[str, np.ndarray],
) -> bool:
    if name in profile.shapes and not _within(profile.shapes[name], shapes[name]):
        return True
    return name in profile.values and name in values and not _within(profile.values[name], values[name].ravel())


def _within(range_: ShapeRange, sizes: Sequence[int] | np.ndarray) -> bool:
    return len(sizes) == len(range_.min) and all(
        low <= size <= high for low, size, high in zip(range_.min, sizes, range_.max, strict=True)
    )


def _distance(profile: OptimizationProfile, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """Returns how far the shapes are from the optimum: half of a size is as far as its double."""
    return sum(
        abs(log(max(size, 1) / max(usual, 1)))
        for name, range_ in profile.shapes.items()
        for size, usual in zip(shapes[name], range_.opt, strict=True)
    )


def _ranges(profile: OptimizationProfile, name: str, values: bool) -> str:
    found = (profile.values if values else profile.shapes).get(name)
    if found is None:
        return "any"
    sizes = (str(low) if low == high else f"{low}..{high}" for low, high in zip(found.min, found.max, strict=True))
    return f"[{', '.join(sizes)}]"


def _declared(file: Path) -> dict[str, str]:
    """Returns the dtypes in the graph beside the engine: `NAME.KEY.engine` was built from `NAME.onnx`."""
    graph = file.with_name(f"{file.stem.rpartition('.')[0] or file.stem}.onnx")
    try:
        content = graph.read_bytes()
    except OSError:
        return {}
    return {t.name: t.dtype for specs in read_signature(content, graph.name) for t in specs}


def _other(file: Path, found: str) -> BackendError:
    return BackendError(
        f"engine '{file.name}' is not what its sidecar says: it has {found}.", hint="build the engine again"
    )
