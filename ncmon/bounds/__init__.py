"""All bounds: the twin of `ncmon.metrics.METRICS`. What a theorem guarantees, beside what was measured."""

from __future__ import annotations

from ncmon.bounds import certificate
from ncmon.metrics.spec import Bound

BOUNDS: tuple[Bound, ...] = certificate.BOUNDS
"""In the order of screens and tables."""

if len({bound.name for bound in BOUNDS}) != len(BOUNDS):
    raise RuntimeError("two bounds share a name")

__all__ = ("BOUNDS", "Bound")
