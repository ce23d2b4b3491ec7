"""What may run a bundle here, best first, and what was chosen in the end. Opens nothing."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from edgemm.bundle import Manifest, Variant
from edgemm.errors import BundleError, EdgemmError, did_you_mean

AUTO = "auto"
"""The target that takes the best of what this machine can run."""

TENSORRT = "tensorrt"
"""Backend of the variants whose engines are graphs that TensorRT builds from."""

ON_CPU = "onnxruntime"
"""What runs a graph that was planned for TensorRT where there is no GPU."""

FALLBACKS = {
    "tensorrt_rtx": ("ort-rtx", "ort-tensorrt", "ort-cuda"),
    "tensorrt": ("ort-tensorrt", "ort-cuda"),
}
"""Module that a graph was planned for -> what else runs it on a GPU, best first."""

TARGETS = {"ort-tensorrt": "ort-tensorrt", "ort-rtx": "ort-rtx", "cuda": "ort-cuda", "cpu": ON_CPU}
"""Target -> what runs graphs for TensorRT there, in a bundle that has no variant of its own for it."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant and what would run it.

    Attributes:
        variant: As the manifest has it.
        backend: What would run every engine; that of the variant, or one that runs the same graphs.
        build: Whether engines that are missing would be built first.
    """

    variant: Variant
    backend: str
    build: bool = False

    @property
    def planned(self) -> bool:
        """Whether its graphs were planned for TensorRT: several backends run them."""
        return bool(module_of(self.variant))

    @property
    def needs_gpu(self) -> bool:
        """Whether it can be ruled out on a machine without an NVIDIA GPU."""
        return self.planned and self.backend != ON_CPU

    def __str__(self) -> str:
        if not self.planned:
            return f"'{self.variant.name}'"
        return f"'{self.variant.name}' by {self.backend}{', built here' if self.build else ''}"


@dataclass(frozen=True, slots=True)
class PassedOver:
    """What would have been better and does not run here.

    Attributes:
        variant: Its name.
        backend: What would have run it.
        reason: Why it does not.
        hint: What to do about it.
    """

    variant: str
    backend: str
    reason: str
    hint: str


@dataclass(frozen=True, slots=True)
class Choice:
    """What `open_session` opened, and why nothing better.

    Attributes:
        variant: Name of the variant.
        backend: What runs it.
        built: Whether its engines were built for this call.
        engines: Files that were opened, in the order of the variant's engines.
        passed_over: Better candidates, best first.
    """

    variant: str
    backend: str
    built: bool
    engines: tuple[str, ...]
    passed_over: tuple[PassedOver, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        passed = [{"variant": p.variant, "backend": p.backend, "reason": p.reason} for p in self.passed_over]
        return {
            "variant": self.variant,
            "backend": self.backend,
            "built": self.built,
            "engines": list(self.engines),
            "passed_over": passed,
        }

    def lines(self) -> list[str]:
        """Returns text for people: what runs, then each better candidate with its reason, equal ones together."""
        reasons = _by_reason((p.reason, p.variant, p.backend) for p in self.passed_over)
        lines = [f"runs {self.variant} by {self.backend}{', built here' if self.built else ''}"]
        lines += [f"not {names}: {reason}" for reason, names in reasons.items()]
        return lines


def _by_reason(failed: Iterable[tuple[str, str, str]]) -> dict[str, str]:
    """Returns reason -> `"a by tensorrt, ort-cuda or b by tensorrt"`, from (reason, variant, backend)."""
    reasons: dict[str, dict[str, dict[str, None]]] = {}
    for reason, variant, backend in failed:
        reasons.setdefault(reason, {}).setdefault(variant, {})[backend] = None
    return {
        reason: " or ".join(f"{variant} by {', '.join(backends)}" for variant, backends in variants.items())
        for reason, variants in reasons.items()
    }


def candidates(manifest: Manifest, target: str, variant: str | None, *, build: bool) -> list[Candidate]:
    """Returns what may be opened, the preferred one first.

    For graphs that were planned for TensorRT: a built engine; one built now, where that is allowed; ONNX Runtime's
    GPU providers. Then what was made for the CPU. The same graphs on the CPU, unoptimized, come last.

    Raises:
        BundleError: The bundle has no such target or variant.
    """
    shipped = [_named(manifest, variant)] if variant is not None else list(manifest.shipped)
    planned = [v for v in shipped if module_of(v)]
    if target == AUTO or (variant is not None and not planned):
        others = [Candidate(v, v.backend) for v in shipped if not module_of(v)]
        return [*_on_gpu(planned, build), *others, *(Candidate(v, ON_CPU) for v in planned)]
    found = [v for v in shipped if v.target == target]
    if found:
        own = [Candidate(v, v.backend) for v in found]
        return own + [Candidate(v, v.backend, build=True) for v in found if build and v.backend == TENSORRT]
    if planned and target in TARGETS:
        return [Candidate(v, TARGETS[target]) for v in planned]
    targets = list(dict.fromkeys(v.target for v in shipped))
    known = [AUTO, *targets, *(TARGETS if planned else ())]
    raise BundleError(
        f"no target '{target}' in this bundle (targets: {', '.join(targets)}).",
        hint=did_you_mean(target, known, "use one of these, or convert the model for this target"),
    )


def _on_gpu(planned: Sequence[Variant], build: bool) -> Iterator[Candidate]:
    engines = [v for v in planned if v.backend == TENSORRT]
    yield from (Candidate(v, TENSORRT) for v in engines)
    if build:
        yield from (Candidate(v, TENSORRT, build=True) for v in engines)
    for backend in dict.fromkeys(b for ways in FALLBACKS.values() for b in ways):
        yield from (Candidate(v, backend) for v in planned if backend in _providers(v))


def _providers(variant: Variant) -> tuple[str, ...]:
    """Returns what else runs the graphs of a variant on a GPU: nothing better than what it was made for."""
    ways = FALLBACKS.get(module_of(variant), ())
    return ways[ways.index(variant.backend) :] if variant.backend in ways else ways


def module_of(variant: Variant) -> str:
    """Returns the TensorRT module that a variant was planned for, empty when it was for none."""
    return next((str(e.options["module"]) for e in variant.engines if "module" in e.options), "")


def nothing_runs(path: object, failed: Sequence[tuple[Candidate, EdgemmError]]) -> EdgemmError:
    """Returns the error of a bundle of which no candidate opens: the first one's, with the others' reasons."""
    first = failed[0][1]
    if len({str(error) for _, error in failed}) == 1:
        return first
    reasons = _by_reason((str(e).rstrip("."), f"'{c.variant.name}'", c.backend) for c, e in failed)
    told = "; ".join(f"{names}: {reason}" for reason, names in reasons.items())
    return type(first)(f"{path}: nothing in this bundle runs here: {told}.", hint=first.hint)


def _named(manifest: Manifest, name: str) -> Variant:
    for variant in manifest.variants:
        if variant.name == name:
            if variant.refused is not None or not variant.engines:
                raise BundleError(
                    f"the variant '{name}' was not shipped: {variant.refused or 'it has no engines'}.",
                    hint=f"open one of these: {', '.join(v.name for v in manifest.shipped)}",
                )
            return variant
    names = [v.name for v in manifest.shipped]
    raise BundleError(
        f"no variant '{name}' in this bundle (variants: {', '.join(names)}).",
        hint=did_you_mean(name, names, "use one of these"),
    )
