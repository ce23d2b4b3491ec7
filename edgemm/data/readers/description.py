"""Description files: YAML that says where samples are and what the arrays are made of.

    source: drive.mcap
    inputs:
      camera: {topic: /camera/image_raw, size: [64, 64], scale: 1/255, layout: chw}
      imu: {topic: /imu, field: [linear_acceleration, angular_velocity], window: 50, layout: ct}
    align: {to: camera, within: 0.05}

A path without a description file is one of which nothing was said.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from edgemm._optional import require
from edgemm.data.readers.rules import Rule, parse_rule
from edgemm.errors import DataError, did_you_mean

METHODS = ("nearest", "previous")
WITHIN = 0.05
"""Seconds between a sample and its match where nothing is said."""

PLACE_OF = {
    "npz": "array",
    "images": "pattern",
    "wav": "pattern",
    "files": "pattern",
    "manifest": "column",
    "hf": "column",
    "webdataset": "extension",
    "mcap": "topic",
    "rosbag2": "topic",
}
"""Form -> what it calls the place of an array."""

EXAMPLE = (
    "for example\nsource: pairs.csv\ninputs:\n  image: {column: photo, size: [32, 32], scale: 1/255, layout: chw}"
)


@dataclass(frozen=True, slots=True)
class Align:
    """How samples of modalities with their own rates are put together.

    Attributes:
        to: The modality whose samples are the samples; empty: the one with the fewest.
        within: Most seconds between a reference sample and its match, by modality; `""` for those not listed.
        method: `nearest`, or `previous`: the last one that is not later, as on a device.
        offset: Modality -> seconds that are added to its times.
    """

    to: str = ""
    within: Mapping[str, float] = field(default_factory=lambda: {"": WITHIN})
    method: str = "nearest"
    offset: Mapping[str, float] = field(default_factory=dict)

    def tolerance(self, name: str) -> float:
        """Returns the most seconds between a reference sample and its match in modality `name`."""
        return self.within.get(name, self.within.get("", WITHIN))


@dataclass(frozen=True, slots=True)
class Description:
    """What the user said of a source.

    Attributes:
        origin: What the user gave: the description file, or the source.
        source: The file or folder.
        form: How it is read: a key of `FORMS`.
        inputs: Array -> its rule; empty: everything that the source has.
        label: The rule of the labels.
        align: How times are matched; None where rows are samples.
        split: Of a Hugging Face dataset: which of its splits.
    """

    origin: str
    source: Path
    form: str
    inputs: Mapping[str, Rule] = field(default_factory=dict)
    label: Rule | None = None
    align: Align | None = None
    split: str | None = None

    @property
    def rules(self) -> dict[str, Rule]:
        """Inputs and label, by the name of the array."""
        return {**self.inputs, **({self.label.name: self.label} if self.label else {})}


def read_description(path: Path) -> Description:
    """Returns what the description file at `path` says; paths in it are relative to its folder.

    Raises:
        DataError: It cannot be read, is no description, or says what is not known.
        MissingExtraError: PyYAML is not installed.
    """
    from edgemm.data.readers import guess_form

    origin = str(path)
    content = _load(path)
    known = ["source", "form", "inputs", "label", "align", "split"]
    for key in content:
        if key not in known:
            recipe = "this looks like a recipe: name it first, `edgemm convert recipe.yaml`"
            hint = recipe if "model" in content else did_you_mean(str(key), known, f"keys: {', '.join(known)}")
            raise DataError(f"{origin}: no key '{key}' in a description of data.", hint=hint)
    given = content.get("source")
    if not isinstance(given, str) or not given:
        raise DataError(f"{origin}: `source` is missing: the file or folder with the data.", hint=EXAMPLE)
    source = path.parent / given
    if not source.exists():
        near = [p.name for p in source.parent.iterdir()] if source.parent.is_dir() else []
        raise DataError(
            f"{origin}: source '{given}': no such file or folder.",
            hint=did_you_mean(source.name, near, "`source` is relative to the description file"),
        )
    form = content.get("form") or guess_form(source, has_rules=_tells_files(content.get("inputs")))
    if form not in PLACE_OF:
        raise DataError(
            f"{origin}: no form '{form}' (forms: {', '.join(PLACE_OF)}).",
            hint=did_you_mean(str(form), PLACE_OF, "leave `form` out to have it guessed"),
        )
    inputs = _section(origin, "inputs", content.get("inputs"))
    rules = {str(k): parse_rule(origin, str(k), v, PLACE_OF[form]) for k, v in inputs.items()}
    label = _label(origin, content.get("label"), PLACE_OF[form])
    named = {**rules, **({label.name: label} if label else {})}
    return Description(
        origin=origin,
        source=source,
        form=form,
        inputs=rules,
        label=label,
        align=_align(origin, content["align"], named) if "align" in content else None,
        split=str(content["split"]) if content.get("split") is not None else None,
    )


def _tells_files(inputs: Any) -> bool:
    """True where patterns, or several inputs, say which files of a folder are which."""
    if not isinstance(inputs, Mapping):
        return False
    return len(inputs) > 1 or any(isinstance(v, str) or (v and "pattern" in v) for v in inputs.values())


def _load(path: Path) -> Mapping[str, Any]:
    yaml = require("yaml", extra="data", why="read a description file")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}.", hint="check the path and its rights") from error
    except yaml.YAMLError as error:
        raise DataError(f"{path}: no YAML: {error}", hint=EXAMPLE) from error
    return _section(str(path), "the file", content)


def _section(origin: str, name: str, value: Any) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise DataError(
            f"{origin}: {name}: got {type(value).__name__}, expected `name: value` lines.", hint=EXAMPLE
        )
    return value


def _label(origin: str, section: Any, place: str) -> Rule | None:
    if section is None:
        return None
    name = "label"
    if isinstance(section, Mapping):
        section = dict(section)
        name = str(section.pop("name", name))
    return parse_rule(origin, name, section, place)


def _align(origin: str, section: Any, inputs: Mapping[str, Any]) -> Align:
    given = dict(_section(origin, "align", section))
    known = [f.name for f in fields(Align)]
    for key in given:
        if key not in known:
            raise DataError(
                f"{origin}: align: no setting '{key}'.",
                hint=did_you_mean(str(key), known, f"settings: {', '.join(known)}"),
            )
    align = Align()
    if "to" in given:
        if given["to"] not in inputs:
            raise DataError(
                f"{origin}: align.to: no input '{given['to']}' (inputs: {', '.join(inputs)}).",
                hint=did_you_mean(str(given["to"]), inputs, "name the modality that the others are held to"),
            )
        align = replace(align, to=str(given["to"]))
    if "method" in given:
        if given["method"] not in METHODS:
            raise DataError(
                f"{origin}: align.method: got {given['method']!r}, expected one of {', '.join(METHODS)}.",
                hint=did_you_mean(str(given["method"]), METHODS, "nearest is the default"),
            )
        align = replace(align, method=given["method"])
    if "within" in given:
        several = given["within"] if isinstance(given["within"], Mapping) else {"": given["within"]}
        align = replace(align, within=_by_modality(origin, "within", several, inputs, least=0.0))
    offset = _section(origin, "align.offset", given.get("offset"))
    return replace(align, offset=_by_modality(origin, "offset", offset, inputs))


def _by_modality(
    origin: str, key: str, given: Mapping[str, Any], inputs: Mapping[str, Any], least: float = float("-inf")
) -> dict[str, float]:
    for name in given:
        if name and name not in inputs:
            hint = did_you_mean(str(name), inputs, f"there are {', '.join(inputs)}")
            raise DataError(f"{origin}: align.{key}: no input or label '{name}'.", hint=hint)
    return {str(k): _seconds(origin, f"{key}.{k}" if k else key, v, least) for k, v in given.items()}


def _seconds(origin: str, key: str, value: Any, least: float = float("-inf")) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value < float("inf"):
        raise DataError(f"{origin}: align.{key}: got {value!r}, expected seconds.", hint="for example 0.05")
    return float(value)
