"""Reads the small text files below /sys, /proc and /etc, where a file may be missing or refuse to be read."""

from __future__ import annotations

from pathlib import Path


def text(path: Path) -> str | None:
    """Returns the content without the space around it, or None where it cannot be read or is empty."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \t\r\n") or None
    except OSError:
        return None


def number(path: Path) -> int | None:
    """Returns the whole number in a file, or None where there is none."""
    try:
        return int(text(path) or "")
    except ValueError:
        return None


def scaled(path: Path, factor: float) -> float | None:
    """Returns the whole number in a file times a factor, or None where there is none."""
    value = number(path)
    return None if value is None else value * factor
