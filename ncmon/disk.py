"""The disk under the store: what kind of file system it is, and how much of it is left. Looks, and changes nothing."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

MIN_FREE_BYTES, MIN_FREE_SHARE = 512 * 1024**2, 0.02
"""The smaller of the two is left free: a disk that is full to the last byte stops more than ncmon."""

_NETWORK = frozenset(
    {"nfs", "nfs4", "lustre", "cifs", "smb3", "smbfs", "9p", "ceph", "gpfs", "beegfs", "afs", "glusterfs", "panfs"}
)
"""Here the locks and the shared memory of a write-ahead log do not hold between machines: the database is damaged."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """How full a file system is, in bytes."""

    total: int
    free: int

    @property
    def floor(self) -> int:
        """Below this nothing is written any more."""
        return int(min(MIN_FREE_BYTES, MIN_FREE_SHARE * self.total))

    @property
    def tight(self) -> bool:
        """Whether no more should be written."""
        return self.free < self.floor


def space(path: Path) -> Space | None:
    """Return how full the file system of a file or directory is; None where it cannot be told."""
    for place in (path, *path.parents):
        try:
            found = os.statvfs(place)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        return Space(total=found.f_blocks * found.f_frsize, free=found.f_bavail * found.f_frsize)
    return None


def network_kind(path: Path, mounts: str | None = None) -> str:
    """Return the kind of the network or FUSE file system under a path; empty for a local one, or an unknown one.

    `mounts` is the text of /proc/self/mountinfo.
    """
    if mounts is None:
        try:
            mounts = Path("/proc/self/mountinfo").read_text(errors="replace")
        except OSError:
            return ""
    target = str(path.absolute().resolve())
    best, kind = -1, ""
    for line in mounts.splitlines():
        fields, _, behind = line.partition(" - ")
        parts, kinds = fields.split(), behind.split()
        if len(parts) < 5 or not kinds:
            continue
        # Mounts come in order: of two at one place the later one lies on top.
        point = parts[4].replace("\\040", " ")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= best:
            best, kind = len(point), kinds[0]
    return kind if kind in _NETWORK or kind.startswith("fuse") else ""
