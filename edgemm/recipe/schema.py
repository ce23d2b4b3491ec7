"""The sections of a recipe. A recipe file and the options of `edgemm convert` fill the same fields."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from edgemm.data import Blank
from edgemm.errors import DataError

Calibrator = Literal["minmax", "moving-average", "percentile", "entropy", "mse", "auto"]
Precision = Literal["auto", "fp32", "fp16", "int8", "fp8", "int4"]
Layout = Literal["auto", "staged", "whole"]
Engine = Literal["auto", "onnxruntime", "openvino"]
Objective = Literal["latency", "size", "accuracy"]
Sizes = tuple[int, int, int]
"""Smallest, usual and largest size of a dynamic dimension."""

Fraction = Annotated[float, Field(gt=0, lt=1)]


class Section(BaseModel):
    """A part of a recipe: immutable, and an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ModelSection(Section):
    """Where the trained model is and what may be run to load it."""

    path: Path = Field(description="Model file: .pt2, TorchScript, state_dict, .safetensors, .onnx.")
    factory: str | None = Field(
        default=None, description="FILE.py:FUNC or pkg.mod:FUNC that returns the nn.Module for a state_dict."
    )
    allow_pickle: bool = Field(
        default=False, description="Load a pickled nn.Module. This runs code from the file."
    )


class InputSection(Section):
    """What the file does not say about one input."""

    modality: str | None = Field(default=None, description="Modality that this input belongs to.")
    shape: tuple[int | str, ...] | None = Field(default=None, description="Sizes, or names of symbolic ones.")
    dtype: str = Field(default="float32", description="numpy dtype name.")
    blank: str | None = Field(
        default=None,
        description="What it gives when its sensor is silent: zeros, mean, silence:LEVEL (noise of that standard "
        "deviation), constant:VALUE or FILE.npy; default: zeros for floats, unchanged for integers.",
    )

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
                raise ValueError(str(error)) from error
        return value


class DataSection(Section):
    """Samples for calibration, search and evaluation: .npz, a folder of shards, or FILE.py:CLASS."""

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
    seed: int = Field(default=0, ge=0, description="Seed of the split.")


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
        default=None, gt=0, description="Latency that what ships must keep to on this machine, in milliseconds."
    )
    search_seconds: float = Field(
        default=60.0, ge=0, description="The search begins nothing new after this and takes the best so far."
    )
    plan: Path | None = Field(default=None, description="A saved plan to apply instead of searching for one.")
    cache: bool = Field(default=True, description="Keep measurements, so that a search that was stopped goes on.")


class Recipe(Section):
    """Everything that `convert` needs, the output path apart."""

    model: ModelSection
    inputs: dict[str, InputSection] = Field(default_factory=dict, description="Per input, by name.")
    states: dict[str, str] = Field(default_factory=dict, description="State input -> the output that feeds it.")
    data: DataSection = DataSection()
    evaluate: EvaluateSection = EvaluateSection()
    export: ExportSection = ExportSection()
    quantize: QuantizeSection = QuantizeSection()
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
        description="staged: one engine per stage; whole: one engine; auto: measured, staged if no slower.",
    )
    engine: Engine = Field(
        default="auto", description="What runs the graphs; auto: whatever is installed and measured faster."
    )
    threads: int = Field(default=0, ge=0, description="Threads for measuring; 0: the backend decides.")

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
        if wanted not in ("auto", "fp32") and self.data.calib is None:
            raise ValueError(f"quantize.precision is {wanted} but data.calib is missing: ranges are never guessed")
        return self
