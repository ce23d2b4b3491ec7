"""The sections of a recipe. A recipe file and the options of `edgemm convert` fill the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import AfterValidator, Field, field_validator, model_validator

from edgemm.data import Blank
from edgemm.errors import DataError, EdgemmError
from edgemm.preprocess.registry import parse
from edgemm.profiling.budget import parse_budget
from edgemm.recipe.rules import QuantizeRule
from edgemm.recipe.section import Section, refused
from edgemm.recipe.step_schema import StepSchema
from edgemm.recipe.streams import MissingSection, StreamSection

Calibrator = Literal["minmax", "moving-average", "percentile", "entropy", "mse", "auto"]
Precision = Literal["auto", "fp32", "fp16", "int8", "fp8", "int4"]
Layout = Literal["auto", "staged", "whole", "both"]
Engine = Literal["auto", "onnxruntime", "openvino"]
Objective = Literal["latency", "size", "accuracy"]
Sizes = tuple[int, int, int]
"""Smallest, usual and largest size of a dynamic dimension."""

OpenSize = Annotated[dict[str, Sizes], Field(min_length=1, max_length=1)]
"""Name of a dynamic dimension, and its sizes."""

Fraction = Annotated[float, Field(gt=0, lt=1)]


class AboutSection(Section):
    """What the recipe shows, for catalogues; nothing is converted differently for it."""

    task: str = Field(min_length=1, description="What the model answers: `digit of 10 from image and voice`.")
    fusion: str = Field(min_length=1, description="How the modalities are joined: concat, gate, cross-attention.")
    data: str = Field(min_length=1, description="What it is trained and scored on.")
    synthetic: bool = Field(default=False, description="The data are made by a program, not recorded.")
    source: str | None = Field(default=None, description="Paper or project that the model follows.")
    title: str | None = Field(default=None, description="Name for people; default: the file's.")


class ModelSection(Section):
    """Where the trained model is and what may be run to load it."""

    path: Path = Field(description="Model file: .pt2, TorchScript, state_dict, .safetensors, .onnx.")
    factory: str | None = Field(
        default=None, description="FILE.py:FUNC or pkg.mod:FUNC that returns the nn.Module for a state_dict."
    )
    allow_pickle: bool = Field(
        default=False, description="Load a pickled nn.Module. This runs code from the file."
    )


def _numpy_name(value: str, *others: str) -> str:
    """Returns numpy's name of a dtype, or `value` where it is one of `others`."""
    try:
        return value if value in others else np.dtype(value).name
    except TypeError as error:
        raise ValueError(f"'{value}' is no dtype: use uint8, int16, float32 or str, for example") from error


def _is_size(item: Any) -> bool:
    """Returns whether an item of a shape has the form of a size, a name or a range."""
    if isinstance(item, Mapping):
        return len(item) == 1 and all(isinstance(s, (list, tuple)) and len(s) == 3 for s in item.values())
    return isinstance(item, (int, str))


def _known_step(value: Any) -> Any:
    try:
        parse((value,))
    except EdgemmError as error:
        raise refused(error) from error
    return value


StepItem = Annotated[str | dict[str, dict[str, Any] | None], AfterValidator(_known_step), StepSchema()]
"""A name, or `{name: {option: value}}`."""


class RawSection(Section):
    """What an app feeds in the place of an input that is made by `preprocess`."""

    dtype: str = Field(description="numpy dtype name, or str for texts.")
    shape: tuple[Annotated[int, Field(ge=1)] | str, ...] = Field(
        default=(), description="Of one sample, without the batch: sizes, or names of symbolic ones."
    )

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        return _numpy_name(value, "str")


class InputSection(Section):
    """What the file does not say about one input."""

    modality: str | None = Field(default=None, min_length=1, description="Modality that this input belongs to.")
    shape: tuple[int | str | OpenSize, ...] | None = Field(
        default=None,
        description="Sizes, or names of symbolic ones, with the smallest, usual and largest size if wanted: "
        "[batch, {frames: [10, 50, 300]}, 40]; for TensorRT, as `profiles`, which wins.",
    )
    dtype: str = Field(default="float32", description="numpy dtype name.")
    rate: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="Samples a second that its sensor gives, in hertz; `edgemm profile` paces by it."
    )
    blank: str | None = Field(
        default=None,
        description="What it gives when its sensor is silent: zeros, mean, silence:LEVEL (noise of that standard "
        "deviation), constant:VALUE or FILE.npy; default: zeros for floats, unchanged for integers.",
    )
    preprocess: tuple[StepItem, ...] | None = Field(
        default=None,
        description="Steps from raw data to this input, in order: [{resize: {size: [224, 224]}}, to_chw]; samples "
        "and the device give raw data then. docs/preprocessing.md lists them.",
    )
    bake: bool | None = Field(
        default=None,
        description="true: the steps become a part of the graph, or fail; false: they run on the host. "
        "Default: in the graph where every step can.",
    )
    source: str | None = Field(
        default=None, description="Name of the raw array, where inputs share one; default: the input's."
    )
    raw: RawSection | None = Field(
        default=None, description="Dtype and shape of the raw array; default: what the samples show."
    )

    @property
    def sizes(self) -> tuple[int | str, ...] | None:
        """The shape without ranges: sizes and names."""
        return (
            None if self.shape is None else tuple(next(iter(d)) if isinstance(d, dict) else d for d in self.shape)
        )

    @property
    def ranges(self) -> dict[int, Sizes]:
        """Axis -> the sizes that `shape` gives it."""
        return {n: next(iter(d.values())) for n, d in enumerate(self.shape or ()) if isinstance(d, dict)}

    @field_validator("dtype")
    @classmethod
    def _known_dtype(cls, value: str) -> str:
        return _numpy_name(value, "str", "bfloat16")

    @field_validator("shape", mode="before")
    @classmethod
    def _sizes_names_or_ranges(cls, value: Any) -> Any:
        for item in value if isinstance(value, (list, tuple)) else ():
            if not _is_size(item):
                raise ValueError(f"got {item}, expected a size, a name, or {{name: [smallest, usual, largest]}}")
        return value

    @model_validator(mode="after")
    def _ranges_of_what_is_fed(self) -> InputSection:
        if self.preprocess is not None and self.ranges:
            raise ValueError(
                "with preprocess, the sizes that change are those of the raw data: name them in raw.shape, and "
                "give their ranges in profiles"
            )
        return self

    @field_validator("preprocess")
    @classmethod
    def _some_steps(cls, value: tuple[Any, ...] | None) -> tuple[Any, ...] | None:
        if value == ():  # `min_length` would count wrong steps as missing
            raise ValueError("got [], expected at least one step")
        return value

    @field_validator("blank", mode="before")
    @classmethod
    def _known_blank(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and len(value) == 1:  # `blank: {silence: 1e-3}`
            (kind, level), *_ = value.items()
            value = level if kind == "file" else f"{kind}:{level}"
        if isinstance(value, str):
            try:
                Blank.parse(value)
            except DataError as error:
                raise refused(error) from error
        return value


class DataSection(Section):
    """Samples for calibration, search and evaluation: whatever `edgemm.data.open_samples` opens."""

    calib: str | None = Field(default=None, description="Samples for calibration and search.")
    eval: str | None = Field(
        default=None, description="Samples for the final evaluation; without it a part of `calib` is set aside."
    )
    label: str | None = Field(default=None, description="Name of the label array.")
    search_share: Fraction = Field(
        default=0.3, description="Share of `calib` that search uses and calibration does not."
    )
    eval_share: Fraction = Field(
        default=0.3, description="Share of `calib` set aside for evaluation without `eval`."
    )
    max_samples: int = Field(default=2000, ge=1, description="At most this many calibration samples are run.")
    blank_share: float = Field(
        default=0.1,
        ge=0,
        le=0.5,
        description="Share of the calibration samples, per modality, that are run with that modality blank "
        "(`inputs.NAME.blank`), so that int8 stays faithful when a sensor drops out.",
    )
    seed: int = Field(default=0, ge=0, strict=True, description="Seed of the split.")


class EvaluateSection(Section):
    """How the fused result is scored, and how much of it may be lost."""

    metric: str | None = Field(
        default=None,
        description="accuracy, f1_macro, auroc, mae, mse, agreement, cosine or FILE.py:FUNC; "
        "default: accuracy for integer labels, mae for float labels, agreement without labels.",
    )
    output: str | None = Field(default=None, description="Output that is scored; default: the first.")
    max_drop: float = Field(default=0.01, ge=0, description="Largest loss of the metric that may ship.")
    batch: int = Field(default=1, ge=1, description="Samples per run during evaluation; 1 is what a device runs.")


class ExportSection(Section):
    """How the model becomes ONNX."""

    opset: int | None = Field(default=None, ge=18, description="ONNX opset; default: the exporter's.")
    absolute_tolerance: float = Field(default=1e-4, gt=0, description="Parity: largest absolute difference.")
    relative_tolerance: float = Field(default=1e-3, ge=0, description="Parity: plus this share of max |output|.")


class QuantizeSection(Section):
    """What precision may be used."""

    precision: Precision = Field(
        default="auto",
        description="auto: integers, fp16 or bf16 where faster and within budget. int8: or fail. fp32: float. "
        "NVIDIA targets: fp16: without integers; fp8 (SM 89 or later): or fail; int4: weights alone, or fail.",
    )
    calibrator: Calibrator = Field(default="mse", description="How a tensor's range is chosen.")
    objective: Objective = Field(
        default="latency",
        description="Within the budget: the fastest, the smallest, or (with max_latency_ms) the most accurate.",
    )
    max_latency_ms: float | None = Field(
        default=None,
        gt=0,
        description="Latency that what ships must keep to on this machine, in milliseconds.",
    )
    search_seconds: float = Field(
        default=60.0, ge=0, description="The search begins nothing new after this and takes the best so far."
    )
    measure_seconds: float = Field(
        default=4.0,
        gt=0,
        description="How long variants that may ship are timed, each time; more on a busy machine.",
    )
    plan: Path | None = Field(default=None, description="A saved plan to apply instead of searching for one.")
    cache: bool = Field(default=True, description="Keep measurements, so that a search that was stopped goes on.")
    rules: tuple[QuantizeRule, ...] = Field(
        default=(),
        description="Precision by hand: [{match: {modality: image, op: Conv*}, precision: float}]. Of several for "
        "a node the last counts; one that matches nothing is an error.",
    )

    @model_validator(mode="after")
    def _rules_have_room(self) -> QuantizeSection:
        if self.rules and self.plan is not None:
            raise ValueError("rules and plan: a saved plan has decided about every node; give one of them")
        asked = next((r.precision for r in self.rules if r.integer), None)
        if asked is not None and self.precision in ("fp32", "fp16"):
            raise ValueError(f"rules: {asked} contradicts precision {self.precision}")
        return self

    @property
    def integers_demanded(self) -> bool:
        """Whether something must be integer, or nothing ships."""
        return self.precision == "int8" or any(rule.integer for rule in self.rules)


class ProfileSection(Section):
    """How `edgemm profile` measures the bundle, where its options do not say; read on the device, too."""

    runs: Annotated[int, Field(ge=1)] | None = Field(default=None, description="Measured runs, in each mode.")
    seconds: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="How long to measure each mode, in seconds; default: 3."
    )
    warmup: Annotated[int, Field(ge=0)] | None = Field(
        default=None, description="Runs before the measured ones; default: until the times are steady."
    )
    rates: dict[str, Annotated[float, Field(gt=0)]] | None = Field(
        default=None, description="Modality -> hertz: paced runs, too; default: inputs.NAME.rate. {}: none."
    )
    cached: tuple[str, ...] = Field(
        default=(), description="Modalities that do not change in a further mode, so that their encoders rest."
    )
    reset_every: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Forget the kept states before every N-th run; default: never."
    )
    budget: str | None = Field(
        default=None, description="What must be kept, else exit code 2: p99<30ms,memory<500MB,paced.missed<1%."
    )

    @field_validator("budget")
    @classmethod
    def _known_budget(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                parse_budget(value)
            except EdgemmError as error:
                raise refused(error) from error
        return value

    @model_validator(mode="after")
    def _one_length(self) -> ProfileSection:
        if self.runs is not None and self.seconds is not None:
            raise ValueError("runs and seconds: give one of them")
        return self


class Recipe(Section):
    """Everything that `convert` needs, the output path apart."""

    about: AboutSection | None = Field(default=None, description="What the recipe shows, for catalogues.")
    model: ModelSection = Field(description="The trained model.")
    inputs: dict[str, InputSection] = Field(default_factory=dict, description="Per input, by name.")
    states: dict[str, str] = Field(default_factory=dict, description="State input -> the output that feeds it.")
    data: DataSection = DataSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    quantize: QuantizeSection = QuantizeSection()
    stream: StreamSection = StreamSection()
    missing: MissingSection = MissingSection()
    profile: ProfileSection = ProfileSection()
    target: tuple[str, ...] = Field(
        default=("cpu",),
        min_length=1,
        description="Devices that the bundle is made for: a name of `edgemm targets`, or a list of them; "
        "auto: this machine.",
    )
    profiles: tuple[dict[str, Sizes], ...] = Field(
        default=(),
        description="For TensorRT: the smallest, usual and largest size of each dynamic dimension, "
        "{batch: [1, 1, 8]}; a list makes several profiles. What is not given is read from the samples.",
    )
    layout: Layout = Field(
        default="auto",
        description="staged: one engine per stage; whole: one engine; both: one for calls in which everything is "
        "new, the stages for the others; auto: measured, staged if no slower.",
    )
    engine: Engine = Field(
        default="auto", description="What runs the graphs; auto: whatever is installed and measured faster."
    )
    threads: int = Field(default=0, ge=0, description="Threads for measuring; 0: the backend decides.")

    @property
    def ranges(self) -> tuple[dict[str, Sizes], ...]:
        """`profiles` with what `inputs.NAME.shape` says of axes, there under `NAME:AXIS`."""
        axes = {f"{name}:{axis}": r for name, i in self.inputs.items() for axis, r in i.ranges.items()}
        return tuple(axes | one for one in self.profiles) or ((axes,) if axes else ())

    @field_validator("target", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        names = (value,) if isinstance(value, str) else value
        return tuple(dict.fromkeys(names)) if isinstance(names, (list, tuple)) else names

    @field_validator("profiles", mode="before")
    @classmethod
    def _one_or_several_profiles(cls, value: Any) -> Any:
        return (value,) if isinstance(value, Mapping) else value

    @model_validator(mode="after")
    def _ranges_need_data(self) -> Recipe:
        wanted = self.quantize.precision
        if any(rule.integer for rule in self.quantize.rules) and self.data.calib is None:
            raise ValueError(
                "quantize.rules asks for integers but data.calib is missing: ranges are never guessed"
            )
        if wanted not in ("auto", "fp32") and self.data.calib is None:
            raise ValueError(f"quantize.precision is {wanted} but data.calib is missing: ranges are never guessed")
        return self
