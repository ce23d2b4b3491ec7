"""Builds the TensorRT engines that a bundle lacks, on the device that will run them, into the bundle.

    bundle ─build_missing▶ the same bundle, and for every stage an engine with its sidecar

The graphs in a bundle are portable, engines are not: classic TensorRT builds for the GPU at hand, TensorRT-RTX
for compute capabilities, with or without a GPU. Each engine is in the bundle as soon as it is built; what was
there and fits is kept, so that an interrupted build goes on where it was.
"""

from __future__ import annotations

import re
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from edgemm.backends.stale import DroppedEngine, drop_damaged, drop_outdated
from edgemm.backends.targets import AUTO, detect_target, find_target
from edgemm.backends.tensorrt import BuildOptions, BuildRequest, Progress, Supervision, build_engine
from edgemm.bundle import CACHE, EngineEntry, Manifest, Variant, add_files, read_manifest, verify
from edgemm.errors import BackendError, BundleError, UnsupportedDeviceError, did_you_mean
from edgemm.runtime import cuda
from edgemm.runtime._trt.built import why_not
from edgemm.runtime._trt.engines import RTX, Gpu, engine_key, engine_path, engines_of
from edgemm.runtime._trt.module import load_module
from edgemm.runtime._trt.sidecar import OptimizationProfile, Sidecar, load_sidecar, sidecar_file
from edgemm.runtime.choice import TENSORRT, module_of

LOCAL = frozenset({"workspace"})
"""Options of the builder that say something about this machine, and nothing about the engine: not kept."""


@dataclass(frozen=True, slots=True)
class Step:
    """Where a build is.

    Attributes:
        variant: Name of the variant.
        engine: Name of the engine.
        number: Of the engine, from 1.
        total: Number of engines.
        progress: Of this engine.
    """

    variant: str
    engine: str
    number: int
    total: int
    progress: Progress


@dataclass(frozen=True, slots=True)
class Watch:
    """How builds are watched: seconds until one is ended (None: never), and who is told of every step."""

    timeout: float | None = 3600.0
    progress: Callable[[Step], None] | None = None


@dataclass(frozen=True, slots=True)
class BuiltEngine:
    """An engine in a bundle: which it is, what its sidecar says, and whether it was there before."""

    variant: str
    engine: str
    file: str
    sidecar: Sidecar
    kept: bool
    warnings: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict; seconds are those of the build, whenever it was."""
        side = self.sidecar
        return {
            "variant": self.variant,
            "engine": self.engine,
            "file": self.file,
            "kept": self.kept,
            "module": side.flavour,
            "version": side.version,
            "compute_capabilities": list(side.compute_capabilities),
            "bytes": side.size,
            "seconds": side.seconds,
            "precisions": dict(side.precisions),
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class BuildReport:
    """What `build_missing` came to: the bundle, what the engines are for, every engine, and those it dropped."""

    bundle: Path
    gpu: Gpu
    engines: tuple[BuiltEngine, ...]
    dropped: tuple[DroppedEngine, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Returns a plain dict."""
        engines = [engine.to_json() for engine in self.engines]
        dropped = [asdict(engine) for engine in self.dropped]
        return {"bundle": str(self.bundle), "gpu": asdict(self.gpu), "engines": engines, "dropped": dropped}


def build_missing(
    path: Path,
    *,
    target: str = AUTO,
    variant: str | None = None,
    options: Mapping[str, Any] | None = None,
    force: bool = False,
    watch: Watch | None = None,
) -> BuildReport:
    """Builds the engines that the bundle at `path` lacks for a GPU, and returns all that it has for it then.

    Built engines that are damaged are dropped from the bundle first. Those that were built for the same GPU and
    TensorRT with what the plan no longer asks for are dropped when there are others.

    Args:
        path: A bundle with variants for TensorRT; it is verified first.
        target: `"auto"` builds for the GPU at hand. The name of a target with TensorRT-RTX builds for its compute
            capability and needs no GPU; that of a Jetson is accepted on one.
        variant: Name of the one to build; None builds those for the target, or all if there is none for it.
        options: Fields of `BuildOptions` by name. They become part of the variant's plan, but for `workspace`;
            a default takes back what an earlier build has put there.
        force: Builds engines again that are there and fit.
        watch: Timeout per engine, and progress.

    Raises:
        BundleError: Not a bundle, damaged, without such a variant, or it cannot be written.
        UnsupportedDeviceError: There is no GPU here, or not that of `target`.
        MissingExtraError: The TensorRT module is not installed.
        BackendError: An engine cannot be built, or an option is not available; engines before it are kept.
    """
    path, watch, options = Path(path), watch or Watch(), dict(options or {})
    _check_options(options)
    manifest = read_manifest(path)
    gpu = _gpu(target, manifest)
    chosen = _variants(path, manifest, target, variant, gpu)
    verify(path, manifest)
    versions = {name: str(load_module(name).__version__) for name in dict.fromkeys(map(module_of, chosen))}
    chosen = [_asking(v, options) for v in chosen]
    dropped = [*drop_damaged(path)]
    manifest = read_manifest(path)
    total = sum(len(v.engines) for v in chosen)
    made: list[BuiltEngine] = []
    for planned in chosen:
        for entry in planned.engines:
            version = versions[module_of(planned)]
            there = None if force else _there(path, manifest, entry, version, gpu)
            if there is not None:
                made.append(BuiltEngine(planned.name, entry.name, there, load_sidecar(path / there), kept=True))
                continue
            job = _Job(path, planned, entry, gpu, options, watch, len(made) + 1, total)
            engine = job.build(version)
            made.append(engine)
            manifest = read_manifest(path)
        if planned not in manifest.variants:
            manifest = add_files(path, {}, _with_plan(planned))  # every engine was there for a plan that is not
        now = {e.engine: e.sidecar for e in made if e.variant == planned.name}
        dropped += drop_outdated(path, planned.engines, now)
    return BuildReport(path, gpu, tuple(made), tuple(dropped))


def _check_options(options: Mapping[str, Any]) -> None:
    known = [f.name for f in fields(BuildOptions)]
    for name in options:
        if name not in known:
            raise BackendError(
                f"TensorRT's builder has no option '{name}' here (options: {', '.join(known)}).",
                hint=did_you_mean(name, known, "use one of these"),
            )


def _gpu(target: str, manifest: Manifest) -> Gpu:
    """Returns what engines are for: the GPU at hand, or the compute capability of a target with TensorRT-RTX."""
    if target == AUTO:
        anywhere = [v.target for v in manifest.shipped if module_of(v) == RTX]
        otherwise = f"; without a GPU: edgemm build --target {anywhere[0]}" if anywhere else ""
        return _gpu_at_hand("", otherwise)
    found = find_target(target)
    if found.kind not in ("rtx", "jetson"):
        raise BackendError(
            f"no engines are built for '{found.name}': {found.summary}.",
            hint="ONNX Runtime builds what it needs when a bundle opens; `edgemm targets` has TensorRT's targets",
        )
    if found.module == RTX and found.sm is not None:
        return Gpu(found.name, found.sm, 0, 0, integrated=False)
    gpu = _gpu_at_hand(
        f"engines for '{found.name}' are built on one: ", "; or copy the bundle there and build there"
    )
    if gpu.sm != found.sm:
        raise UnsupportedDeviceError(
            f"engines for '{found.name}' (SM {found.sm}) are built on one; here is '{gpu.name}' (SM {gpu.sm}).",
            hint="copy the bundle there and build it there, or use --target auto for this GPU",
        )
    return gpu


def _gpu_at_hand(before: str, otherwise: str) -> Gpu:
    try:
        return cuda.find_gpu()
    except UnsupportedDeviceError as error:
        raise UnsupportedDeviceError(f"{before}{error}", hint=f"{error.hint}{otherwise}") from error


def _variants(path: Path, manifest: Manifest, target: str, name: str | None, gpu: Gpu) -> list[Variant]:
    """Returns the variants to build: the one called `name`, those for the target, or all that its module takes."""
    planned = [v for v in manifest.shipped if v.backend == TENSORRT]
    if name is not None:
        found = [v for v in manifest.shipped if v.name == name]
        names = [v.name for v in planned]
        if not any(v.name == name for v in planned):
            why = "is not for TensorRT" if found else "is not in this bundle"
            raise BundleError(
                f"{path}: the variant '{name}' {why} (variants for TensorRT: {', '.join(names) or 'none'}).",
                hint=did_you_mean(name, names, "convert the model for a TensorRT target, see `edgemm targets`"),
            )
        return _buildable(found, target)
    if not planned:
        targets = ", ".join(dict.fromkeys(v.target for v in manifest.shipped))
        raise BundleError(
            f"{path}: no variant is for TensorRT (targets: {targets}).",
            hint="convert the model for a TensorRT target, see `edgemm targets`",
        )
    if target == AUTO:
        here = detect_target().target.name
        alike = [v for v in planned if v.target == here] or [
            v for v in planned if find_target(v.target).sm == gpu.sm
        ]
        return alike or planned
    own = [v for v in planned if v.target == find_target(target).name]
    if not own:
        raise BundleError(
            f"{path}: no variant is for '{target}' (variants for TensorRT: {', '.join(v.name for v in planned)}).",
            hint=f"build one of them for it with --variant {planned[0].name}, or convert the model for {target}",
        )
    return own


def _buildable(found: list[Variant], target: str) -> list[Variant]:
    if target != AUTO and find_target(target).module == RTX and module_of(found[0]) != RTX:
        raise BackendError(
            f"the variant '{found[0].name}' is built by TensorRT on the device itself, not for '{target}'.",
            hint="build it there with --target auto, or convert the model for a TensorRT-RTX target",
        )
    return found


def _asking(variant: Variant, options: Mapping[str, Any]) -> Variant:
    """Returns a variant whose plan asks for `options` as well, but for what is this machine's own affair.

    A plan names what is not the builder's default: asking for a default takes an earlier wish back.
    """
    default = asdict(BuildOptions())
    asked = {name: value for name, value in options.items() if name not in LOCAL}

    def plan(entry: EngineEntry) -> EngineEntry:
        build = {**entry.options.get("build", {}), **asked}
        wanted = {name: value for name, value in build.items() if value != default.get(name)}
        if wanted.get("gpu_fallback") and "dla_core" not in wanted:
            raise BackendError(
                f"variant '{variant.name}': fallback to the GPU was asked for without a DLA core to leave.",
                hint="add the core: --dla-core 0 --gpu-fallback; or take both back: --forget",
            )
        return replace(entry, options={**entry.options, "build": wanted})

    return replace(variant, engines=tuple(plan(e) for e in variant.engines)) if asked else variant


def _there(path: Path, manifest: Manifest, entry: EngineEntry, version: str, gpu: Gpu) -> str | None:
    """Returns the engine of `entry` that is there and fits, if there is one."""
    module = str(entry.options["module"])
    files = engines_of(manifest.files, entry.file)
    return next((f for f in files if why_not(path, manifest, entry, f, module, version, gpu) is None), None)


@dataclass(frozen=True, slots=True)
class _Job:
    """One engine to build, and to put into its bundle."""

    path: Path
    variant: Variant
    entry: EngineEntry
    gpu: Gpu
    options: Mapping[str, Any]
    watch: Watch
    number: int
    total: int

    def build(self, version: str) -> BuiltEngine:
        with _work_folder(self.path) as folder:
            build = build_engine(self._request(folder, version), Supervision(self.watch.timeout, self._note))
            manifest = read_manifest(self.path)
            if build.sidecar.onnx_sha256 != manifest.files[self.entry.file]["sha256"]:
                raise BundleError(
                    f"{self.path}: '{self.entry.file}' was changed while its engine was built.",
                    hint="build it again when nobody writes to the bundle",
                )
            file = engine_path(self.entry.file, engine_key(build.sidecar))
            add_files(
                self.path,
                {file: build.engine, sidecar_file(Path(file)).as_posix(): sidecar_file(build.engine)},
                _with_plan(self.variant),
            )
        return BuiltEngine(self.variant.name, self.entry.name, file, build.sidecar, False, build.warnings)

    def _request(self, folder: Path, version: str) -> BuildRequest:
        plan, gpu = self.entry.options, self.gpu
        module = str(plan["module"])
        classic = module != RTX
        stages = [s for s in read_manifest(self.path).stages if s.name in self.entry.stages]
        return BuildRequest(
            self.path / self.entry.file,
            folder / "engine",
            module,
            stage=self.entry.name,
            modalities=tuple(dict.fromkeys(m for s in stages for m in s.modalities)),
            compute_capabilities=(gpu.sm,),
            profiles=tuple(OptimizationProfile.from_json(p) for p in plan.get("profiles", ())),
            precisions=tuple(plan.get("precisions", ())),
            options=BuildOptions(**{**plan.get("build", {}), **self.options}),
            timing_cache=_timing_cache(self.path, module, version, gpu) if classic else None,
            device={"name": gpu.name, "multiprocessors": gpu.multiprocessors} if classic else {},
        )

    def _note(self, progress: Progress) -> None:
        if self.watch.progress is not None:
            self.watch.progress(Step(self.variant.name, self.entry.name, self.number, self.total, progress))


def _with_plan(planned: Variant) -> Callable[[Manifest], Manifest]:
    """Returns what puts the plan of a variant, which may ask for more than before, into a manifest."""
    asked = {e.name: e.options for e in planned.engines}

    def changed(variant: Variant) -> Variant:
        if variant.name != planned.name:
            return variant
        return replace(variant, engines=tuple(replace(e, options=asked[e.name]) for e in variant.engines))

    return lambda manifest: replace(manifest, variants=tuple(changed(v) for v in manifest.variants))


def _timing_cache(path: Path, module: str, version: str, gpu: Gpu) -> Path:
    """Returns the file with kernel timings of one GPU and TensorRT; made by the builder when it is not there."""
    name = re.sub(r"[^\w.-]+", "-", f"{module}-{version}-sm{gpu.sm}-{gpu.name}-{gpu.multiprocessors}")
    return path / CACHE / f"timing-{name}.cache"


@contextmanager
def _work_folder(path: Path) -> Iterator[Path]:
    """Yields a folder in the bundle's cache, on the disk where the engine will be."""
    folder = path / CACHE / f"building-{secrets.token_hex(8)}"
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise BundleError(
            f"{path}: cannot be written: {error.strerror or error}.",
            hint="engines are built into the bundle: copy it to where you may write",
        ) from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
