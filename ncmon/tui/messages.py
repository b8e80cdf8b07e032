"""What workers say to screens: one frozen value a message."""

from __future__ import annotations

from textual.message import Message

from ncmon.feed import Snapshot


class SnapshotReady(Message):
    """The feed was read."""

    def __init__(self, snapshot: Snapshot) -> None:
        super().__init__()
        self.snapshot = snapshot

    def can_replace(self, message: Message) -> bool:
        """A snapshot that nobody looked at yet is superseded by a newer one."""
        return isinstance(message, SnapshotReady)
