"""What every section of a recipe is."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict
from pydantic_core import PydanticCustomError

from edgemm.errors import EdgemmError

REFUSED = "refused"
"""Type of pydantic's errors that have words of ours, and a hint in their context."""


class Section(BaseModel):
    """A part of a recipe: immutable; an unknown field and a number that is not finite are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def refused(error: EdgemmError) -> PydanticCustomError:
    """Returns what a validator raises in the place of an error of ours, whose message and hint it keeps."""
    return PydanticCustomError(REFUSED, "{message}", {"message": str(error).removesuffix("."), "hint": error.hint})
