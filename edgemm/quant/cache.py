"""Measurements kept between runs: an interrupted search goes on where it was, a repeated one is quick.

One JSON line per result. A key is the digest of everything that the number depends on.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgemm.runtime.folders import cache_folder as cache_folder


def key_of(*parts: Any) -> str:
    """Returns the digest of JSON values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


@dataclass(slots=True)
class Results:
    """Numbers by key, in memory and in a file. A file that cannot be written is done without.

    Attributes:
        file: Where results are kept, or None to keep them in memory only.
        reused: How many were found rather than measured.
    """

    file: Path | None = None
    reused: int = 0
    _known: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, file: Path | None) -> Results:
        """Returns the results in `file`; a line that was cut off by an interruption is ignored."""
        results = cls(file)
        if file is not None and file.is_file():
            for line in file.read_text(errors="replace").splitlines():
                try:
                    key, value = json.loads(line)
                except ValueError:
                    continue
                results._known[key] = value
        return results

    def get(self, key: str) -> Any | None:
        """Returns the value of `key`, or None."""
        value = self._known.get(key)
        self.reused += value is not None
        return value

    def put(self, key: str, value: Any) -> None:
        """Keeps a JSON value, at once and in one write."""
        self._known[key] = value
        if self.file is None:
            return
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with self.file.open("a") as out:
                out.write(json.dumps([key, value]) + "\n")
        except OSError:
            self.file = None
