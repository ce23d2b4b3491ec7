"""How the engines of a variant share the cores of a CPU: it decides how long a call takes, not what it gives."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast, get_args

from edgemm.errors import BundleError, DataError, did_you_mean

Order = Literal["sequential", "parallel"]
Idle = Literal["rest", "spin"]


@dataclass(frozen=True, slots=True)
class Schedule:
    """Which engines run at the same time, and what their threads do between runs.

    Attributes:
        order: `"sequential"`: one engine after the other, each on all cores. `"parallel"`: engines that do not
            read from each other run at the same time, and divide the cores.
        idle: What the threads of an engine do after its run: `"rest"`, or `"spin"` for a while, so that they begin
            the next run at once and meanwhile take a core from whoever else wants it.
        shares: Engine -> how long it takes beside the others, in any unit: by that the cores are divided.
    """

    order: Order = "sequential"
    idle: Idle = "rest"
    shares: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Checks the fields.

        Raises:
            DataError: No such order or idle, or a share that is no positive number.
        """
        for name, value, known in (("order", self.order, get_args(Order)), ("idle", self.idle, get_args(Idle))):
            if value not in known:
                raise DataError(
                    f"Schedule.{name}: got {value!r:.60}, expected one of {', '.join(known)}.",
                    hint=did_you_mean(str(value), known, "leave it out for the default"),
                )
        if not isinstance(self.shares, Mapping) or not all(map(_is_share, self.shares.values())):
            raise DataError(
                f"Schedule.shares: got {self.shares!r:.60}, expected positive numbers by engine.",
                hint="for example {'image': 2.0, 'audio': 1.0}",
            )

    def __str__(self) -> str:
        return self.order if self.idle == "rest" else f"{self.order}, spinning"

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as plain JSON values."""
        shares = {name: float(self.shares[name]) for name in sorted(self.shares)}
        return {"order": self.order, "idle": self.idle, "shares": shares}

    @classmethod
    def from_json(cls, data: object, where: str) -> Schedule:
        """Returns the schedule that `to_json` wrote; `where` is its place, for errors.

        Raises:
            BundleError: No such order, or a share that is no positive number.
        """
        fields = data if isinstance(data, Mapping) else {}
        order, idle, shares = (fields.get(name) for name in ("order", "idle", "shares"))
        for name, value, known in (("order", order, get_args(Order)), ("idle", idle, get_args(Idle))):
            if value not in known:
                raise BundleError(
                    f"manifest: '{where}.{name}' is {value!r:.60}, expected one of {', '.join(known)}.",
                    hint=did_you_mean(str(value), known, "made by a newer edgemm? update edgemm on this device"),
                )
        if not isinstance(shares, Mapping) or not all(_is_share(value) for value in shares.values()):
            raise BundleError(
                f"manifest: '{where}.shares' is {shares!r:.60}, expected positive numbers by engine.",
                hint="the bundle is damaged or was edited; copy it again, or convert the model again",
            )
        return cls(cast(Order, order), cast(Idle, idle), {name: float(value) for name, value in shares.items()})


def _is_share(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf
