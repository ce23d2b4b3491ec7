"""Step name -> class, and steps as plain JSON: what recipes say and bundles keep."""

from __future__ import annotations

import dataclasses
import importlib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

from edgemm.errors import RecipeError, did_you_mean
from edgemm.preprocess.step import Step, name_of

STEPS: Mapping[str, str] = {
    "bgr_to_rgb": "edgemm.preprocess.image:BgrToRgb",
    "nv12_to_rgb": "edgemm.preprocess.image:Nv12ToRgb",
    "resize": "edgemm.preprocess.image:Resize",
    "center_crop": "edgemm.preprocess.image:CenterCrop",
    "crop": "edgemm.preprocess.image:Crop",
    "grayscale": "edgemm.preprocess.image:Grayscale",
    "sobel": "edgemm.preprocess.image:Sobel",
    "to_chw": "edgemm.preprocess.image:ToChw",
    "normalize": "edgemm.preprocess.image:Normalize",
    "bev": "edgemm.preprocess.points:Bev",
    "pillars": "edgemm.preprocess.points:Pillars",
    "pcm": "edgemm.preprocess.audio:Pcm",
    "mono": "edgemm.preprocess.audio:Mono",
    "fit_length": "edgemm.preprocess.audio:FitLength",
    "resample": "edgemm.preprocess.audio:Resample",
    "pre_emphasis": "edgemm.preprocess.audio:PreEmphasis",
    "normalize_clip": "edgemm.preprocess.audio:NormalizeClip",
    "log_mel": "edgemm.preprocess.audio_features:LogMel",
    "mfcc": "edgemm.preprocess.audio_features:Mfcc",
    "kaldi_fbank": "edgemm.preprocess.kaldi:KaldiFbank",
    "units": "edgemm.preprocess.imu:Units",
    "mount_axes": "edgemm.preprocess.imu:MountAxes",
    "gravity": "edgemm.preprocess.imu:Gravity",
    "transpose": "edgemm.preprocess.imu:Transpose",
    "lowercase": "edgemm.preprocess.text:Lowercase",
    "remove_stop_words": "edgemm.preprocess.text:RemoveStopWords",
    "tokenize": "edgemm.preprocess.text:Tokenize",
}
"""Name in recipes -> `"module:Class"`. The name is the class's in snake case."""

_DOCS = "docs/preprocessing.md lists the steps and their options"


def step_class(name: str) -> type[Step]:
    """Returns the class of the step `name`.

    Raises:
        RecipeError: There is none; the hint names the closest one.
    """
    if name not in STEPS:
        raise RecipeError(
            f"preprocess: there is no step '{name}'.",
            hint=did_you_mean(name, STEPS, f"steps: {', '.join(STEPS)}; {_DOCS}"),
        )
    module, _, attribute = STEPS[name].partition(":")
    return cast("type[Step]", getattr(importlib.import_module(module), attribute))


def parse(items: object, folder: Path | None = None) -> tuple[Step, ...]:
    """Returns the steps that a recipe or a manifest lists.

    Args:
        items: A list of `{name: {option: value}}`, of `{name: None}`, or of names alone.
        folder: What files named in options are relative to; None leaves them.

    Raises:
        RecipeError: No such list, step or option, or a value of the wrong type or out of range.
    """
    if not isinstance(items, Sequence) or isinstance(items, str):
        raise RecipeError(f"preprocess: got {items!r:.60}, expected a list of steps.", hint=_DOCS)
    return tuple(_step(item, folder) for item in items)


def to_json(steps: Sequence[Step]) -> list[dict[str, dict[str, Any]]]:
    """Returns plain JSON values with every option, defaults too; `parse` is the inverse."""
    return [{name_of(step): {f.name: _plain(getattr(step, f.name)) for f in _fields(step)}} for step in steps]


def file_options(name: str) -> frozenset[str]:
    """Returns the options of the step `name` that are files; none of a step that does not exist."""
    hints = typing.get_type_hints(step_class(name)) if name in STEPS else {}
    return frozenset(key for key, hint in hints.items() if Path in (hint, *typing.get_args(hint)))


def files_of(step: Step) -> dict[str, Path]:
    """Returns option -> file of the step's options that are files: these ship with the bundle."""
    values = {f.name: getattr(step, f.name) for f in _fields(step)}
    return {name: value for name, value in values.items() if isinstance(value, Path)}


def _step(item: object, folder: Path | None) -> Step:
    if isinstance(item, str):
        item = {item: None}
    if not isinstance(item, Mapping) or len(item) != 1:
        raise RecipeError(
            f"preprocess: got {item!r:.80}, expected one step, {{name: {{option: value}}}}.", hint=_DOCS
        )
    ((name, options),) = item.items()
    cls = step_class(str(name))
    options = {} if options is None else options
    if not isinstance(options, Mapping):
        raise RecipeError(f"preprocess: {name}: got {options!r:.60}, expected {{option: value}}.", hint=_DOCS)
    fields = {f.name: f for f in dataclasses.fields(cast("Any", cls))}
    for key in options:
        if key not in fields:
            raise RecipeError(
                f"preprocess: {name}: there is no option '{key}'.",
                hint=did_you_mean(str(key), fields, f"options: {', '.join(fields) or 'none'}; {_DOCS}"),
            )
    for key, field in fields.items():
        optional = field.default is not dataclasses.MISSING or field.default_factory is not dataclasses.MISSING
        if key not in options and not optional:
            raise RecipeError(f"preprocess: {name}: the option '{key}' is missing.", hint=_DOCS)
    hints = typing.get_type_hints(cls)
    values = {str(k): _convert(v, hints[k], f"{name}: {k}", folder) for k, v in options.items()}
    return cls(**values)


def _convert(value: Any, hint: Any, where: str, folder: Path | None) -> Any:
    """Returns `value` as the annotation of its field has it."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in args:
            return None
        (hint,) = (a for a in args if a is not type(None))
        return _convert(value, hint, where, folder)
    if origin is Literal:
        if value in args and not isinstance(value, bool):
            return value
        known = [str(a) for a in args]
        hint_text = did_you_mean(str(value), known, _DOCS)
        raise RecipeError(f"preprocess: {where} is {value!r}, expected {' or '.join(known)}.", hint=hint_text)
    if origin is tuple and isinstance(value, (list, tuple)):
        kinds = (args[0],) * len(value) if args[-1] is Ellipsis else args
        if len(kinds) == len(value):
            return tuple(_convert(v, k, where, folder) for v, k in zip(value, kinds, strict=True))
    elif hint is Path and isinstance(value, (str, Path)):
        return Path(value) if folder is None else folder / value
    elif hint is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        if math.isfinite(value):
            return float(value)
        raise RecipeError(f"preprocess: {where} is {value!r}, expected a finite number.", hint=_DOCS)
    elif isinstance(hint, type) and isinstance(value, hint) and isinstance(value, bool) == (hint is bool):
        return value
    raise RecipeError(f"preprocess: {where} is {value!r}, expected {_expected(hint)}.", hint=_DOCS)


def _expected(hint: Any) -> str:
    args = typing.get_args(hint)
    if typing.get_origin(hint) is tuple:
        inner = ", ".join(_expected(a) for a in args if a is not Ellipsis)
        return f"a list of {inner}" if args[-1] is Ellipsis else f"[{inner}]"
    return {int: "an integer", float: "a number", bool: "true or false", str: "a text", Path: "a file"}.get(
        hint, str(hint)
    )


def _fields(step: Step) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(cast("Any", step))


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(v) for v in value]
    return value.as_posix() if isinstance(value, Path) else value
