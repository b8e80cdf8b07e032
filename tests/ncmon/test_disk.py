"""What kind of disk it is, and when it is nearly full."""

from __future__ import annotations

from pathlib import Path

import pytest

from ncmon import disk

MOUNTS = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /home rw,relatime shared:5 - nfs4 server:/home rw
31 22 0:41 / /scratch rw - lustre mds@tcp:/scratch rw
32 22 0:42 / /scratch/local rw - xfs /dev/nvme0n1 rw
33 22 0:43 / /mnt/my\\040disk rw - fuse.sshfs me@host: rw
34 22 0:44 / /remote rw - nfs server:/x rw
35 22 0:45 / /remote rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/var/x", ""),
        ("/home/me/.local/share/ncmon", "nfs4"),
        ("/homestead", ""),
        ("/scratch/runs", "lustre"),
        ("/scratch/local/runs", ""),
        ("/mnt/my disk/runs", "fuse.sshfs"),
        ("/remote/runs", ""),
    ],
)
def test_a_network_file_system_is_known_by_its_mount(path: str, kind: str) -> None:
    assert disk.network_kind(Path(path), MOUNTS) == kind


def test_this_disk_says_how_full_it_is_also_for_what_is_not_there_yet(tmp_path: Path) -> None:
    here, there = disk.space(tmp_path), disk.space(tmp_path / "a" / "b")
    assert here is not None
    assert there is not None
    assert 0 < here.free <= here.total == there.total


@pytest.mark.parametrize(
    ("total", "free", "tight"),
    [(1 << 40, 600 << 20, False), (1 << 40, 500 << 20, True), (64 << 20, 2 << 20, False), (64 << 20, 1 << 20, True)],
)
def test_512_mb_or_two_percent_are_left_whichever_is_less(total: int, free: int, tight: bool) -> None:
    assert disk.Space(total=total, free=free).tight == tight
