"""Where this machine keeps what is made once and may be thrown away."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the user's folder for it: `$XDG_CACHE_HOME/edgemm` or `~/.cache/edgemm`. It may not be there yet."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "edgemm"
