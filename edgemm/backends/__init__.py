"""Builders of engines, one file per backend. Their session twins live in `edgemm.runtime`."""

from __future__ import annotations

from edgemm.backends.base import Backend, Engine
from edgemm.backends.registry import BACKENDS, get_backend

__all__ = ["BACKENDS", "Backend", "Engine", "get_backend"]
