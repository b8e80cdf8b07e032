"""What is measured of pairs when some classes may be left out: vertex covers.

A bound "for all but k classes" of a quantity of pairs speaks of the best choice of those k: the least value that can be
reached of the greatest entry between the classes that are left. An entry counts as soon as neither of its classes is
left out, so that the question is which entries, from the greatest down, k classes cover.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np

from ncmon.model import FloatArray

MOST_EDGES = 2_000_000
"""Entries that may be looked at, about a second; hard questions have hundreds of classes and many of them left out."""

Edge = tuple[int, int]


def greatest_but(matrix: FloatArray, k: int) -> float | None:
    """Return the least possible greatest entry off the diagonal of a symmetric (C, C) matrix without k of its classes.

    None where nothing is left, or where the search is too long to know.
    """
    rows, columns = np.triu_indices(len(matrix), 1)
    values = matrix[rows, columns]
    there = ~np.isnan(values)
    order = np.argsort(-values[there], kind="stable")
    rows, columns, values = rows[there][order], columns[there][order], values[there][order]
    low, high = 0, len(values)
    # The greatest `low` entries can be covered; more than `high` cannot.
    search = _Search()
    try:
        while low < high:
            middle = (low + high + 1) // 2
            edges = list(zip(rows[:middle].tolist(), columns[:middle].tolist(), strict=True))
            if search.covers(edges, k):
                low = middle
            else:
                high = middle - 1
    except _TooLong:
        return None
    return float(values[low]) if low < len(values) else None


class _TooLong(Exception):
    """More was looked at than may be."""


class _Search:
    def __init__(self) -> None:
        self._edges = 0

    def covers(self, edges: Sequence[Edge], k: int) -> bool:
        """Whether k classes can be found of which every edge has one: Buss' rule, then one of two branches."""
        self._edges += len(edges)
        if self._edges > MOST_EDGES:
            raise _TooLong
        if not edges:
            return True
        degrees = Counter(end for edge in edges for end in edge)
        ((most, degree),) = degrees.most_common(1)
        if k <= 0 or len(edges) > k * degree:
            return False
        if degree == 1:
            return True
        others = {a if b == most else b for a, b in edges if most in (a, b)}
        without = [edge for edge in edges if most not in edge]
        if self.covers(without, k - 1):
            return True
        if degree > k:
            return False
        return self.covers([edge for edge in edges if not others.intersection(edge)], k - degree)
