"""JSON Schema of a preprocessing step, so that editors complete and check names and options."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from typing import Any, cast

from pydantic import GetJsonSchemaHandler, TypeAdapter
from pydantic_core import CoreSchema

from edgemm.preprocess.registry import STEPS, step_class

STEP = "step"
"""Title of the schema."""


class StepSchema:
    """Marks an annotation: its JSON Schema lists the steps; made when a schema is asked for, not before."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """Returns the schema of one step: a name alone, or `{name: {option: value}}`."""
        options = {name: _options(name) for name in STEPS}
        alone = [name for name, schema in options.items() if "required" not in schema]
        one = {"type": "object", "properties": options, "additionalProperties": False}
        return {"title": STEP, "anyOf": [{"enum": alone}, one | {"minProperties": 1, "maxProperties": 1}]}


def _options(name: str) -> dict[str, Any]:
    """Returns the schema of a step's options; `required` only where one has no default."""
    cls = step_class(name)
    hints, fields = typing.get_type_hints(cls), dataclasses.fields(cast("Any", cls))
    properties = {}
    for field in fields:
        adapter: TypeAdapter[Any] = TypeAdapter(hints[field.name])
        properties[field.name] = adapter.json_schema()
        if field.default not in (dataclasses.MISSING, None):
            properties[field.name]["default"] = adapter.dump_python(field.default, mode="json")
    missing = (dataclasses.MISSING, dataclasses.MISSING)
    required = [f.name for f in fields if (f.default, f.default_factory) == missing]
    schema: dict[str, Any] = {"description": (inspect.getdoc(cls) or "").partition("\n\n")[0].replace("\n", " ")}
    schema |= {"type": "object" if required else ["object", "null"], "properties": properties}
    return schema | {"additionalProperties": False} | ({"required": required} if required else {})
