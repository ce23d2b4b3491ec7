"""The builder's options. Each is set where the API has it and refused with a reason where it has not."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edgemm.backends._trt.request import HARDWARE, BuildRequest
from edgemm.errors import BackendError
from edgemm.runtime._trt.module import has, is_rtx, title
from edgemm.runtime._trt.sidecar import OptimizationProfile
from edgemm.tensors import ShapeRange

Report = Callable[[str, int, int], None]
"""Called with a phase, a step and the number of steps."""


def configure(trt: Any, builder: Any, network: Any, request: BuildRequest) -> Any:
    """Returns a builder configuration with the request's options, profiles and targets.

    Raises:
        BackendError: This TensorRT, or this machine, lacks something that was asked for.
    """
    config = builder.create_builder_config()
    options = request.options
    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.optimization_level is not None:
        config.builder_optimization_level = _level(options.optimization_level, request)
    if options.detailed and has(trt, "ProfilingVerbosity.DETAILED"):
        config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)
    _set_flags(trt, config, request)
    _set_hardware(trt, config, request)
    if options.dla_core is not None:
        _set_dla(trt, builder, config, network, request)
    for profile in request.profiles:
        _add_profile(trt, builder, config, network, profile, request)
    if not request.profiles:
        _check_static(network, request)
    return config


def _level(level: int, request: BuildRequest) -> int:
    if not 0 <= level <= 5:
        raise request.fail(f"got optimization level {level}, expected 0 to 5.", "3 is TensorRT's default")
    return level


def _set_flags(trt: Any, config: Any, request: BuildRequest) -> None:
    options = request.options
    wanted = (
        (options.sparse_weights, "SPARSE_WEIGHTS", "sparse weights"),
        (options.version_compatible, "VERSION_COMPATIBLE", "a version-compatible engine"),
        (options.refit, "REFIT", "refit"),
        (options.strip_weights, "STRIP_PLAN", "an engine without weights"),
        (options.weight_streaming, "WEIGHT_STREAMING", "weight streaming"),
    )
    for on, flag, what in wanted:
        if not on:
            continue
        if not has(trt, f"BuilderFlag.{flag}"):
            raise request.fail(
                f"{what} was asked for and {title(trt)} has no {flag}.", "leave it out, or update TensorRT"
            )
        if flag == "VERSION_COMPATIBLE" and is_rtx(trt):
            raise request.fail(
                f"{what} was asked for; {title(trt)} comes without the lean runtime that such engines need.",
                "leave it out: build for the TensorRT-RTX version that the device has",
            )
        config.set_flag(getattr(trt.BuilderFlag, flag))


def _set_hardware(trt: Any, config: Any, request: BuildRequest) -> None:
    """Names the GPUs: compute capabilities on RTX, a compatibility level or the GPU at hand elsewhere."""
    level = request.options.hardware_compatibility
    if level is not None and level not in HARDWARE:
        raise request.fail(
            f"no hardware compatibility '{level}' (levels: {', '.join(HARDWARE)}).", "use one of these"
        )
    if is_rtx(trt):
        if level is not None:
            raise request.fail(
                f"hardware compatibility '{level}' was asked for; {title(trt)} ignores it.",
                "name the compute capabilities instead: one engine may have several",
            )
        _set_capabilities(trt, config, request)
        return
    if len(request.compute_capabilities) > 1:
        raise request.fail(
            f"got compute capabilities {_list(request.compute_capabilities)}; {title(trt)} builds for the GPU at "
            "hand only.",
            "build on each device, ask for hardware compatibility, or use TensorRT-RTX",
        )
    if level is not None:
        member = HARDWARE[level]
        if not has(trt, f"HardwareCompatibilityLevel.{member}"):
            raise request.fail(
                f"hardware compatibility '{level}' was asked for and {title(trt)} has no {member}.",
                "leave it out, or update TensorRT",
            )
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, member)


def _set_capabilities(trt: Any, config: Any, request: BuildRequest) -> None:
    """Never leaves the default: with it an engine claims GPUs that lack its precision, and leaves others out."""
    known = sorted(int(n[2:]) for n in dir(trt.ComputeCapability) if n[:2] == "SM" and n[2:].isdigit())
    wanted = request.compute_capabilities
    if not wanted:
        raise request.fail(
            f"{title(trt)} builds for compute capabilities that are named, and none is.",
            f"give some of {_list(known)}, for example (86, 120)",
        )
    for number in wanted:
        if number not in known:
            raise request.fail(
                f"{title(trt)} has no code for compute capability {number} (it has {_list(known)}).",
                "engines for Jetson and data-centre GPUs are built by classic TensorRT on the device itself",
            )
    if len(set(wanted)) != len(wanted):
        raise request.fail(
            f"compute capabilities {_list(wanted)} name one twice.", "name each compute capability once"
        )
    config.num_compute_capabilities = len(wanted)
    for index, number in enumerate(wanted):
        if config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{number}"), index) is False:
            raise request.fail(
                f"{title(trt)} does not take compute capability {number}.", f"give some of {_list(known)}"
            )


def _set_dla(trt: Any, builder: Any, config: Any, network: Any, request: BuildRequest) -> None:
    """Puts the network on an accelerator, which takes fixed sizes only (NVIDIA, "DLA Supported Layers")."""
    core, options = request.options.dla_core, request.options
    cores = builder.num_DLA_cores if has(trt, "Builder.num_DLA_cores") else 0
    if core is None or not 0 <= core < cores:
        raise request.fail(
            f"DLA core {core} was asked for and {title(trt)} finds {cores or 'none'} on this machine.",
            "build for the GPU; accelerators are on Xavier and Orin",
        )
    for number, profile in enumerate(request.profiles):
        for name, shape in profile.shapes.items():
            if not shape.min == shape.opt == shape.max:
                raise request.fail(
                    f"profile {number}: input '{name}' is {list(shape.min)} to {list(shape.max)}; a DLA engine "
                    "has fixed sizes.",
                    "give one size for min, opt and max",
                )
    config.default_device_type = trt.DeviceType.DLA
    config.DLA_core = core
    if options.gpu_fallback:
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)
        return
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.type.name != "CONSTANT" and not config.can_run_on_DLA(layer):
            raise request.fail(
                f"layer '{layer.name}' ({layer.type.name}) does not run on a DLA.",
                "allow GPU fallback for this stage, or build it for the GPU",
            )


def _add_profile(
    trt: Any, builder: Any, config: Any, network: Any, profile: OptimizationProfile, request: BuildRequest
) -> None:
    made = builder.create_optimization_profile()
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = profile.shapes.get(tensor.name)
        if shape is not None:
            _call(made.set_shape, tensor.name, shape, request)
        if not tensor.is_shape_tensor:
            continue
        value = profile.values.get(tensor.name)
        if value is None:
            raise _no_values(tensor, request)
        _call(made.set_shape_input, tensor.name, value, request)
    if config.add_optimization_profile(made) < 0:
        ranges = [f"{name} {list(s.min)} to {list(s.max)}" for name, s in profile.shapes.items()]
        raise request.fail(
            f"{title(trt)} refuses a profile: {_list(ranges)}.",
            "check min, opt and max of every input",
        )


def _call(setter: Callable[..., Any], name: str, shape: ShapeRange, request: BuildRequest) -> None:
    try:
        setter(name, shape.min, shape.opt, shape.max)
    except (ValueError, RuntimeError) as error:
        raise request.fail(
            f"input '{name}': {list(shape.min)}, {list(shape.opt)}, {list(shape.max)} is refused: {error}.",
            "check min, opt and max",
        ) from error


def _check_static(network: Any, request: BuildRequest) -> None:
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise _no_values(tensor, request)
        if any(size < 0 for size in tensor.shape):
            raise request.fail(
                f"input '{tensor.name}' {list(tensor.shape)} is dynamic and there is no profile.",
                "give a range for every dynamic size",
            )


def _no_values(tensor: Any, request: BuildRequest) -> BackendError:
    return request.fail(
        f"input '{tensor.name}' is a shape inside the network: a profile needs the range of its values.",
        f"give smallest, usual and largest values of '{tensor.name}', or make it a constant",
    )


def use_timing_cache(trt: Any, config: Any, file: Path) -> None:
    """Lets the builder read the kernel timings in `file`; those of another GPU or version are left out."""
    content = file.read_bytes() if file.is_file() else b""
    cache = config.create_timing_cache(content)
    if content and (cache is None or config.set_timing_cache(cache, False) is False):
        content = b""
        cache = config.create_timing_cache(content)
    if not content:
        config.set_timing_cache(cache, False)


def keep_timing_cache(config: Any, file: Path) -> None:
    """Writes the kernel timings of a build to `file`, whole or not at all."""
    cache = config.get_timing_cache()
    if cache is None:
        return
    temporary = file.with_name(f".{file.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.write_bytes(bytes(cache.serialize()))
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)


def has_timing_cache(trt: Any) -> bool:
    """Returns whether timings can be kept; TensorRT-RTX takes none when it builds."""
    return has(trt, "IBuilderConfig.create_timing_cache") and not is_rtx(trt)


def watch(trt: Any, config: Any, report: Report) -> bool:
    """Reports the builder's progress where it has a monitor; returns whether it has."""
    if not (has(trt, "IProgressMonitor") and has(trt, "IBuilderConfig.progress_monitor")):
        return False

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self.steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self.steps[phase_name] = num_steps
            report(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            report(phase_name, step + 1, self.steps.get(phase_name, step + 1))
            return True

        def phase_finish(self, phase_name: str) -> None:
            steps = self.steps.pop(phase_name, 0)
            report(phase_name, steps, steps)

    config.progress_monitor = Monitor()
    return True


def _list(values: Sequence[object]) -> str:
    return ", ".join(map(str, values))
