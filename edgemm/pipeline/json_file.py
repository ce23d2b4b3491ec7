"""How a bundle holds JSON for people and programs to read."""

from __future__ import annotations

import json
from typing import Any


def json_file(value: Any) -> bytes:
    """Returns a file's content: indented, with a line end; equal values give equal bytes."""
    return json.dumps(value, indent=1).encode() + b"\n"
