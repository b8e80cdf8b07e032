"""Python's collector of cycles, kept away from what never is garbage.

Textual, numpy and their kin are eighty thousand objects that stay until the end. Every now and then the collector
looks at all of them: 200 ms at once, which was a quarter of what a refresh cost on average. What is there once the
screen is up is set aside for good; while it comes, nothing is looked for.
"""

from __future__ import annotations

import gc

YOUNG, MIDDLE, OLD = 5_000, 20, 20
"""New objects before a look at the new ones, and how many such looks before one at those that stayed: a refresh makes
some thousand objects, and hardly any is part of a cycle."""


def wait() -> None:
    """Look for nothing while everything is imported and made."""
    gc.disable()


def begin() -> None:
    """Set aside what there is and look at what comes from now on."""
    gc.freeze()
    gc.set_threshold(YOUNG, MIDDLE, OLD)
    gc.enable()
