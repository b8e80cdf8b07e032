"""All bounds: the twin of `ncmon.metrics.METRICS`. What a theorem guarantees, beside what was measured."""

from __future__ import annotations

from ncmon.bounds import certificate, pairs, plus, sharp, theorem
from ncmon.metrics.spec import Bound

BOUNDS: tuple[Bound, ...] = (
    *certificate.BOUNDS,
    *pairs.BOUNDS,
    *plus.BOUNDS,
    *sharp.BOUNDS,
    *theorem.BOUNDS,
)
"""In the order of screens and tables: from what single classes must have to what the theorem's own proof gives."""

if len({bound.name for bound in BOUNDS}) != len(BOUNDS):
    raise RuntimeError("two bounds share a name")

__all__ = ("BOUNDS", "Bound")
