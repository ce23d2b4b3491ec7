"""How the engines of a variant are chained: by tensor name, with what may stay on the GPU between them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from edgemm.bundle import EngineEntry, Manifest, Variant
from edgemm.errors import BundleError
from edgemm.runtime._cuda.array import DeviceArray, LentArray
from edgemm.runtime._cuda.dtypes import host_dtype
from edgemm.runtime.session import EngineSession
from edgemm.tensors import IOSpec, TensorSpec

ON_DEVICE = ("tensorrt",)
"""Backends whose sessions give each other arrays on the GPU."""


class Step(NamedTuple):
    """One engine call: what it reads, what it gives, and which tensors nobody needs after it.

    `run_on_device` and `wait` are those of an engine on a GPU: the results stay there, and one waits for them.
    `fetches` is True of an engine on the CPU beside others on a GPU.
    """

    name: str
    run: Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    done: tuple[str, ...]
    run_on_device: Callable[[Mapping[str, Any]], Sequence[Any]] | None
    wait: Callable[[], None] | None
    fetches: bool

    def given(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Returns what it reads of `values`, where it can read it."""
        given = {name: values[name] for name in self.inputs}
        return {name: fetched(value) for name, value in given.items()} if self.fetches else given


def device_outputs(io: IOSpec, entries: Sequence[EngineEntry]) -> dict[str, frozenset[str]]:
    """Returns engine -> which of its outputs stay on the GPU: `SessionOptions.device_outputs`.

    They are those that only engines of the same GPU backend read, states for the next call among them, and results
    that are there before the last engine: they are fetched at the end, when all of them are on their way. Integer
    states travel by way of the host: TensorRT 8 keeps int64 as int32.
    """
    readers: dict[str, set[str]] = {}
    for entry in entries:
        for name in entry.inputs:
            readers.setdefault(name, set()).add(entry.backend)
    dtypes = {o.name: o.dtype for o in io.outputs}
    states = {s.output: s.input for s in io.states}

    def stays(name: str, backend: str, *, last: bool) -> bool:
        read = set(readers.get(name, ()))
        if name in states:
            if dtypes[name].startswith("int"):
                return False
            read |= readers.get(states[name], set())
        return read <= {backend} and bool(read or (name in dtypes and not last))

    return {
        entry.name: frozenset(n for n in entry.outputs if stays(n, entry.backend, last=entry is entries[-1]))
        for entry in entries
        if entry.backend in ON_DEVICE
    }


def lenders(engines: Sequence[EngineSession]) -> dict[str, Callable[[str, Any], LentArray]]:
    """Returns input -> how an engine on a GPU takes another library's array, from the first one that reads it."""
    found: dict[str, Callable[[str, Any], LentArray]] = {}
    for engine in engines:
        lend = getattr(engine, "lend", None)
        if lend is not None:
            for spec in engine.inputs:
                found.setdefault(spec.name, lend)
    return found


def make_steps(io: IOSpec, variant: Variant, engines: Sequence[EngineSession]) -> tuple[Step, ...]:
    """Returns the engine calls in order, each with the intermediate tensors that end there."""
    kept = {o.name for o in io.outputs} | {i.name for i in io.inputs}
    last: dict[str, int] = {}
    for at, engine in enumerate(engines):
        for spec in (*engine.inputs, *engine.outputs):
            last[spec.name] = at
    on_gpu = any(hasattr(engine, "run_on_device") for engine in engines)
    return tuple(
        Step(
            entry.name,
            engine.run,
            tuple(i.name for i in engine.inputs),
            tuple(o.name for o in engine.outputs),
            tuple(name for name, end in last.items() if end == at and name not in kept),
            getattr(engine, "run_on_device", None),
            getattr(engine, "wait", None),
            on_gpu and not hasattr(engine, "run_on_device"),
        )
        for at, (entry, engine) in enumerate(zip(variant.engines, engines, strict=True))
    )


def direct_call(
    steps: Sequence[Step], inputs: Sequence[str], results: tuple[str, ...]
) -> Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]] | None:
    """Returns the call of a lone engine that takes the feed and gives the results as they are, else None."""
    if len(steps) != 1:
        return None
    return steps[0].run if set(steps[0].inputs) == set(inputs) and steps[0].outputs == results else None


def check_engines(manifest: Manifest, variant: Variant, engines: Sequence[EngineSession]) -> None:
    """Refuses engines whose own signature is not what the manifest says."""
    inputs = {i.name: i for i in manifest.io.inputs}
    outputs = {o.name: o for o in manifest.io.outputs}
    for entry, engine in zip(variant.engines, engines, strict=True):
        for kind, actual, said in (
            ("takes", engine.inputs, entry.inputs),
            ("gives", engine.outputs, entry.outputs),
        ):
            names = [a.name for a in actual]
            if sorted(names) != sorted(said):
                raise BundleError(
                    f"engine '{entry.name}' {kind} {', '.join(names)}; the manifest says {', '.join(said)}.",
                    hint="the bundle was put together wrongly; convert the model again",
                )
        for spec, known in [(i, inputs.get(i.name)) for i in engine.inputs] + [
            (o, outputs.get(o.name)) for o in engine.outputs
        ]:
            if known is not None and not _fits(known, spec):
                raise BundleError(
                    f"engine '{entry.name}' has {spec}; the manifest says {known}.",
                    hint="the bundle was put together wrongly; convert the model again",
                )


def _fits(known: TensorSpec, spec: TensorSpec) -> bool:
    """True when dtype, rank and every size that both fix are the same."""
    return (known.dtype, len(known.shape)) == (spec.dtype, len(spec.shape)) and all(
        a == b for a, b in zip(known.shape, spec.shape, strict=True) if isinstance(a, int) and isinstance(b, int)
    )


def shown(value: Any) -> Any:
    """Returns what the checks look at: of an array on the GPU one of its dtype and shape, which nobody fills."""
    return np.empty(value.shape, host_dtype(value.dtype)) if isinstance(value, DeviceArray | LentArray) else value


def copied(value: Any) -> Any:
    """Returns a copy of an input that is a result as well."""
    return value.value if isinstance(value, LentArray) else np.array(value)


def dtype_of(spec: TensorSpec) -> np.dtype[Any]:
    """Returns the dtype of an input.

    Raises:
        BundleError: numpy has none like it.
    """
    try:
        return np.dtype(spec.dtype)
    except TypeError as error:
        raise BundleError(
            f"input '{spec.name}' is {spec.dtype}, which numpy does not have.",
            hint="convert the model with inputs that numpy has, float32 or float16 for example",
        ) from error


def fetched(value: Any) -> Any:
    """Returns an array on the GPU as one on the host, any other as it is."""
    return value.numpy() if isinstance(value, DeviceArray | LentArray) else value
