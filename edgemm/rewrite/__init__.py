"""Graph changes that keep the numbers: an ordered list of rules, applied to a copy of the exported graph."""

from __future__ import annotations

from edgemm.rewrite.pipeline import DEFAULT_RULES, Rule, rewrite

__all__ = ["DEFAULT_RULES", "Rule", "rewrite"]
