"""The breaker: says when the daemon holds more memory than honest traffic explains, so that it cuts its clients off.

Credit bounds what ncmon's own clients have in flight. Somebody else may ignore it, and the parts of a message without
an end are counted by no limit of libzmq (measured: 306 MB from 14). There is one cure: the clients' socket is closed
with all that it holds, and everybody begins a new session.

It looks at the resident memory of the whole process. What the allocator only keeps for later is given back before that
is called too much; what remains after a cut is the daemon's own (parts of several ranks, an evaluation), and the limit
moves above it, so that a cut is never repeated for what it cannot cure.
"""

from __future__ import annotations

from collections.abc import Callable

from ncmon.process import give_back_memory, resident_bytes

LIMIT_BYTES = 320 * 1024**2
"""With what comes in until the next look this stays below half a gigabyte."""
LOOK_S = 0.05
MARGIN_BYTES = 64 * 1024**2


class Breaker:
    """Looks at memory every now and then. `now` is a monotonic clock in seconds, given by the caller."""

    def __init__(
        self,
        limit_bytes: int = LIMIT_BYTES,
        *,
        resident: Callable[[], int] = resident_bytes,
        give_back: Callable[[], None] = give_back_memory,
    ) -> None:
        self._least = self._limit = limit_bytes
        self._resident = resident
        self._give_back = give_back
        self.next_look = 0.0
        """When it wants to be asked again; nothing is hurt by asking earlier or later."""

    def trips(self, now: float) -> int:
        """Return how many bytes there are where that is too much, otherwise 0."""
        if now < self.next_look:
            return 0
        self.next_look = now + LOOK_S
        found = self._resident()
        # What was held at a cut is let go of little by little, and the limit comes down with it.
        self._limit = min(self._limit, self._above(found))
        if found <= self._limit:
            return 0
        self._give_back()
        found = self._resident()
        return found if found > self._limit else 0

    def freed(self) -> bool:
        """Return whether what was cut off has been given back; the library closes in the background."""
        self._give_back()
        return self._resident() <= self._least

    def cut(self) -> None:
        """The clients were cut off, and the library has let go of what it held for them."""
        self._give_back()
        self._limit = self._above(self._resident())

    def _above(self, held: int) -> int:
        return max(self._least, held + held // 4 + MARGIN_BYTES)
