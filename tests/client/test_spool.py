"""Spool files: what they keep through crashes and damage, when they are written, and who delivers them."""

from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ncmon_client import courier, spool, wire
from ncmon_client.keeper import AGE_S, Keeper
from ncmon_client.outbox import Outbox, Packed
from ncmon_client.sender import Sender
from ncmon_client.spool import InUse, Label, SpoolError, SpoolFile
from tests.client.test_sender import Daemon, offer, place, running, wait_for
from tests.messages import STREAM, Prepared, make_gap, make_info

__all__ = ("place",)  # the fixture

LOG = logging.getLogger("ncmon_t")


def label(**fields: object) -> Label:
    return Label(**{"stream": STREAM, "endpoint": "ipc:///nowhere/s", "run": make_info(), **fields})  # type: ignore[arg-type]


def packed(step: int, size: int = 0) -> Packed:
    blobs = tuple(wire.cut(bytes(step % 251 for _ in range(size)))) if size else ()
    return Packed(kind=wire.Kind.GAP, body=wire.pack_meta(make_gap(step=step)), blobs=blobs)


def written(place: Path, count: int, *, first: int = 0, size: int = 0, **fields: object) -> Path:
    file = SpoolFile.create(label(**fields), place=place)
    for seq in range(first, first + count):
        file.append(seq, packed(seq, size))
    file.close()
    return file.path


# -- the file ---------------------------------------------------------------------------------------------------------


def test_what_was_appended_is_read_back_byte_for_byte(tmp_path: Path) -> None:
    file = SpoolFile.create(label(), place=tmp_path)
    messages = [packed(0), packed(1, 5000), packed(2, wire.BLOB_CUT_BYTES + 17)]
    places = [file.append(seq, message) for seq, message in enumerate(messages)]
    assert [file.read(one) for one in places] == messages
    file.close()
    taken, found = SpoolFile.take(file.path)
    assert found.label == label()
    assert [record.seq for record in found.records] == [0, 1, 2]
    assert [taken.read(record.place) for record in found.records] == messages
    assert (found.torn_bytes, found.damaged_bytes) == (0, 0)
    assert oct(file.path.stat().st_mode & 0o777) == "0o600"
    taken.close()


def test_a_file_cut_off_anywhere_keeps_every_whole_message_before_the_cut(tmp_path: Path) -> None:
    """A crash, or a full disk, may end the file at any byte."""
    path = written(tmp_path, 5, size=40)
    content = path.read_bytes()
    whole = spool.look(path)[0]
    ends = [record.place.offset + record.place.length for record in whole.records]
    begin = whole.records[0].place.offset
    for cut in range(begin, len(content) + 1):
        torn = tmp_path / f"cut{spool.SUFFIX}"
        torn.write_bytes(content[:cut])
        taken, found = SpoolFile.take(torn)
        assert len(found.records) == sum(end <= cut for end in ends)
        assert found.damaged_bytes == 0
        # What was torn is gone: who goes on with the file begins behind a whole record.
        assert torn.stat().st_size == max([begin, *(end for end in ends if end <= cut)])
        taken.close()


def test_a_changed_byte_anywhere_loses_the_message_it_is_in_and_no_other(tmp_path: Path) -> None:
    path = written(tmp_path, 6, size=30)
    content = path.read_bytes()
    taken, whole = SpoolFile.take(path)
    taken.close()
    rng = random.Random(5)
    for _ in range(200):
        at = rng.randrange(whole.records[0].place.offset, len(content))
        spoilt = bytearray(content)
        spoilt[at] ^= 1 << rng.randrange(8)
        path.write_bytes(spoilt)
        taken, found = SpoolFile.take(path)
        taken.close()
        hit = [r.seq for r in whole.records if r.place.offset <= at < r.place.offset + r.place.length]
        assert [record.seq for record in found.records] == [seq for seq in range(6) if seq not in hit]
        assert (found.damaged_bytes > 0) == (hit != [5])


def test_every_byte_of_the_last_record_may_be_wrong_in_every_bit(tmp_path: Path) -> None:
    """Enumerated: whatever it is, what stands before is delivered, and nothing is made up."""
    path = written(tmp_path, 3, size=20)
    content = path.read_bytes()
    last = spool.look(path)[0].records[-1].place
    assert last.offset + last.length == len(content)
    before = content[: last.offset]
    for at in range(last.offset, len(content)):
        for spoilt in (*(content[at] ^ 1 << bit for bit in range(8)), 0, 255):
            if spoilt == content[at]:
                continue
            path.write_bytes(content[:at] + bytes([spoilt]) + content[at + 1 :])
            taken, found = SpoolFile.take(path)
            taken.close()
            assert [record.seq for record in found.records] == [0, 1]
            # Nothing behind it tells damage from an end that was never written: it is cut off.
            assert path.read_bytes() == before


@pytest.mark.parametrize("spoil", ["torn", "corrupt"])
@pytest.mark.sockets
def test_a_spoilt_end_is_delivered_up_to_it_by_whoever_comes(place: Path, spoil: str) -> None:
    with running(place) as daemon:
        for number, deliverer in enumerate(("next client", "courier", "sweep")):
            run = make_info(run_id=f"r{number}")
            path = written(place / "spool", 4, run=run, endpoint=f"ipc://{place}/s", stream=bytes([number] * 16))
            with open(path, "r+b") as file:
                if spoil == "torn":
                    file.truncate(path.stat().st_size - 7)
                else:
                    file.seek(-7, os.SEEK_END)
                    file.write(b"\xff\x00\xff")
            if deliverer == "next client":
                outbox = Outbox()
                sender = Sender(
                    endpoint=f"ipc://{place}/s", run=run, outbox=outbox, log=LOG, level="auto", place=place / "spool"
                )
                offer(sender, outbox, range(100, 101))
                assert sender.close(20.0)
            elif deliverer == "courier":
                courier.deliver(path, log=LOG)
            else:
                from ncmon.sweep import Sweep

                Sweep([f"ipc://{place}/s"], connected=frozenset, place=place / "spool").once()
            assert len(daemon.stored[bytes([number] * 16)]) == 3, deliverer
            assert not path.exists()


def test_level_fsync_waits_for_the_disk_at_every_window_and_always_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[int] = []
    real = os.fdatasync

    def counted(handle: int) -> None:
        real(handle)
        synced.append(os.fstat(handle).st_size)

    monkeypatch.setattr(os, "fdatasync", counted)
    for level, each in (("always", 0), ("fsync", 1)):
        synced.clear()
        outbox = Outbox()
        sender = Sender(
            endpoint=f"ipc://{tmp_path}/nobody",
            run=make_info(run_id=level),
            outbox=outbox,
            log=LOG,
            level=level,  # type: ignore[arg-type]
            place=tmp_path,
        )
        for step in range(10):
            before = len(synced)
            offer(sender, outbox, range(step, step + 1))
            assert sender.settle()
            # Before the training went on, the disk had confirmed a file that ends behind this window.
            assert len(synced) - before >= each
            if each:
                [path] = spool.files(tmp_path, run_id=level)
                assert synced[-1] == path.stat().st_size
        assert bool(synced) == bool(each)
        sender.close(0.0)


@pytest.mark.sockets
def test_two_who_deliver_the_same_files_at_once_deliver_everything_once(place: Path) -> None:
    import concurrent.futures

    paths = [
        written(place / "spool", 30, run=make_info(run_id=f"r{n}"), endpoint=f"ipc://{place}/s", stream=bytes([n] * 16))
        for n in range(6)
    ]

    def push() -> int:
        delivered = 0
        for path in paths:
            try:
                done = courier.deliver(path, log=LOG)
            except InUse:
                continue
            except SpoolError:
                assert not path.exists()
                continue
            delivered += done.messages - done.left
        return delivered

    with running(place) as daemon, concurrent.futures.ThreadPoolExecutor(2) as pool:
        first, second = pool.submit(push), pool.submit(push)
        assert first.result(60) + second.result(60) == 180
    assert sorted(daemon.messages()) == sorted(list(range(30)) * 6)
    assert spool.files(place / "spool") == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_a_file_of_somebody_else_is_one_line_and_stays(tmp_path: Path) -> None:
    """As user 65534 (nobody): the file of another user, then a directory that cannot be written."""
    path = written(tmp_path, 2)
    before = path.read_bytes()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setuid(65534)
            for act in (spool.look, SpoolFile.take):
                with pytest.raises(SpoolError) as caught:
                    act(path)
                assert "\n" not in str(caught.value)
                assert "denied" in str(caught.value)
            with pytest.raises(SpoolError, match="denied"):
                SpoolFile.create(label(), place=tmp_path / "new")
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"", b"x" * 5, b"NCMSPOOL\x09\0\0\0", b"NCMSPOOL\x01\0\0\0", os.urandom(10_000)],
    ids=["empty", "short", "another version", "no label", "noise"],
)
def test_a_file_without_a_legible_label_is_renamed_aside_and_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"r-0-x{spool.SUFFIX}"
    path.write_bytes(content)
    with pytest.raises(SpoolError, match=r"kept as r-0-x\.spool\.corrupt"):
        SpoolFile.take(path)
    assert [file.name for file in tmp_path.iterdir()] == ["r-0-x.spool.corrupt"]
    assert spool.files(tmp_path) == []


def test_the_file_of_a_process_that_lives_is_taken_by_nobody(tmp_path: Path) -> None:
    file = SpoolFile.create(label(), place=tmp_path)
    with pytest.raises(InUse):
        SpoolFile.take(file.path)
    assert spool.look(file.path)[1]
    file.close()
    assert not spool.look(file.path)[1]
    SpoolFile.take(file.path)[0].close()


@pytest.mark.filterwarnings("ignore:This process.*multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_lock_of_its_parent(tmp_path: Path) -> None:
    file = SpoolFile.create(label(), place=tmp_path)
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.2)
        file.close()
        SpoolFile.take(file.path)[0].close()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_file_that_cannot_grow_refuses_whole_messages(tmp_path: Path) -> None:
    file = SpoolFile.create(label(), place=tmp_path)
    file.max_bytes = file.nbytes + 500
    kept = 0
    with pytest.raises(SpoolError):
        for seq in range(100):
            file.append(seq, packed(seq, 50))
            kept += 1
    file.close()
    assert kept > 0
    assert len(spool.look(file.path)[0].records) == kept


def test_rewriting_is_at_once_or_not_at_all(tmp_path: Path) -> None:
    path = written(tmp_path, 3)
    taken, found = SpoolFile.take(path)

    def failing() -> Iterator[tuple[int, Packed]]:
        yield 0, packed(7)
        raise SpoolError("the disk is full")

    with pytest.raises(SpoolError):
        taken.rewrite(label(stream=bytes(16)), failing())
    assert [taken.read(record.place) for record in found.records] == [packed(0), packed(1), packed(2)]
    places = taken.rewrite(label(stream=bytes(16)), [(0, packed(7)), (1, packed(8))])
    assert [taken.read(one) for one in places] == [packed(7), packed(8)]
    with pytest.raises(InUse):
        SpoolFile.take(path)
    taken.close()
    again, found = SpoolFile.take(path)
    assert found.label.stream == bytes(16)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    again.close()


# -- what is written when ---------------------------------------------------------------------------------------------


class Kept:
    """An outbox with its keeper, and a clock that the test moves."""

    def __init__(self, place: Path, level: spool.Level, **bounds: int) -> None:
        self.outbox = Outbox(**bounds)
        self.now = 100.0
        self.stream = STREAM
        self.keeper = Keeper(
            level=level,
            outbox=self.outbox,
            run=make_info(),
            endpoint="ipc:///nowhere/s",
            stream=STREAM,
            log=LOG,
            place=place,
            now=self.now,
        )

    def offer(self, count: int, *, nbytes: int = 100) -> int:
        return sum(self.outbox.offer(Prepared(make_gap(step=n)), nbytes) for n in range(count))

    def turn(self, *, online: bool = False) -> None:
        while self.keeper.turn(self.now, self.stream, online=online):
            pass

    def send(self, upto: int) -> None:
        while self.outbox.cursor < upto:
            self.outbox.advance()


@pytest.fixture
def keep(tmp_path: Path) -> Iterator[Callable[..., Kept]]:
    """A factory of `Kept`, whose files are closed after the test as a process would at its end."""
    made: list[Kept] = []

    def make(level: spool.Level, place: Path = tmp_path, **bounds: int) -> Kept:
        made.append(Kept(place, level, **bounds))
        return made[-1]

    yield make
    for kept in made:
        kept.keeper.finish(kept.now, kept.stream)


def test_at_level_auto_a_window_is_written_when_it_has_waited_for_a_second(
    tmp_path: Path, keep: Callable[..., Kept]
) -> None:
    kept = keep("auto")
    kept.offer(3)
    kept.turn()
    assert kept.keeper.path is None
    due = kept.keeper.next_due(kept.now)
    assert due == kept.now + AGE_S
    kept.now += 0.5
    kept.offer(1)
    kept.turn()
    kept.now = due
    kept.turn()
    assert kept.outbox.counts().spooled == 3
    kept.now += 0.5
    kept.turn()
    assert kept.outbox.counts().spooled == 4
    assert kept.keeper.next_due(kept.now) is None


def test_at_level_memory_nothing_is_ever_written(tmp_path: Path, keep: Callable[..., Kept]) -> None:
    kept = keep("memory")
    kept.offer(3)
    kept.turn()
    kept.now += 10 * AGE_S
    kept.turn()
    kept.keeper.finish(kept.now, STREAM)
    assert list(tmp_path.iterdir()) == []


def test_while_the_daemon_is_away_what_is_on_disk_leaves_memory_and_makes_room(
    tmp_path: Path, keep: Callable[..., Kept]
) -> None:
    kept = keep("always", max_messages=10)
    for _ in range(50):
        assert kept.offer(10) == 10
        kept.turn()
    counts = kept.outbox.counts()
    assert (counts.held, counts.spooled, counts.held_bytes, counts.refused) == (500, 500, 0, 0)
    entries = kept.outbox.entries()
    assert [kept.keeper.fetch(entry) for entry in entries[:10]] == [packed(n) for n in range(10)]


def test_when_everything_is_acknowledged_the_file_holds_nothing_and_goes_at_the_end(
    tmp_path: Path, keep: Callable[..., Kept]
) -> None:
    kept = keep("always")
    kept.offer(20)
    kept.turn(online=True)
    [path] = tmp_path.iterdir()
    full = path.stat().st_size
    kept.send(20)
    kept.outbox.acknowledge(20)
    kept.turn(online=True)
    assert path.stat().st_size < full
    kept.offer(2)
    kept.turn(online=True)
    assert [record.seq for record in spool.look(path)[0].records] == [20, 21]
    kept.send(22)
    kept.outbox.acknowledge(22)
    kept.keeper.finish(kept.now, STREAM)
    assert list(tmp_path.iterdir()) == []


def test_a_new_stream_is_in_the_file_before_it_is_used(tmp_path: Path, keep: Callable[..., Kept]) -> None:
    kept = keep("always")
    kept.offer(5)
    kept.turn()
    kept.send(3)
    kept.outbox.acknowledge(2)
    kept.outbox.restart(Prepared(make_gap(step=1, reason="the store lost 2 messages")))
    kept.stream = bytes(16)
    kept.turn()
    [path] = tmp_path.iterdir()
    found = spool.look(path)[0]
    assert found.label.stream == bytes(16)
    assert [record.seq for record in found.records] == [0, 1, 2, 3]
    assert [kept.keeper.fetch(entry) for entry in kept.outbox.entries()[1:]] == [packed(n) for n in (2, 3, 4)]


def test_a_disk_that_fails_is_said_once_and_tried_again(
    tmp_path: Path, keep: Callable[..., Kept], caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "spool").write_text("a file where the directory should be")
    kept = keep("always", tmp_path / "spool", max_messages=10)
    assert kept.offer(20) == 10
    for _ in range(30):
        kept.turn()
        kept.now += 1.0
    assert kept.keeper.trouble
    assert len(caplog.records) == 1
    (tmp_path / "spool").unlink()
    kept.now += 10.0
    kept.turn()
    assert not kept.keeper.trouble
    assert kept.outbox.counts().spooled == 10
    assert kept.offer(5) == 5


# -- who delivers it --------------------------------------------------------------------------------------------------


def make_sender(place: Path, level: spool.Level, **fields: object) -> tuple[Sender, Outbox]:
    outbox = Outbox()
    run = make_info(**fields)  # type: ignore[arg-type]
    spools = place / "spool"
    return Sender(endpoint=f"ipc://{place}/s", run=run, outbox=outbox, log=LOG, level=level, place=spools), outbox


@pytest.mark.sockets
def test_what_could_not_be_delivered_is_on_disk_and_the_next_client_of_the_run_delivers_it_first(place: Path) -> None:
    sender, outbox = make_sender(place, "auto")
    offer(sender, outbox, range(5))
    assert not sender.close(5.0)
    status = sender.status()
    assert (status.held, status.spooled) == (5, 5)
    assert len(spool.files(place / "spool")) == 1
    with running(place) as daemon:
        other, others = make_sender(place, "auto", run_id="another")
        offer(other, others, range(100, 101))
        assert other.close(10.0)
        assert daemon.messages() == [100]
        following, outbox = make_sender(place, "auto")
        offer(following, outbox, range(5, 8))
        assert following.close(10.0)
        assert daemon.messages() == [100, *range(8)]
    assert list((place / "spool").iterdir()) == []


@pytest.mark.sockets
def test_a_file_is_delivered_once_however_often_it_is_delivered(place: Path) -> None:
    path = written(place, 30)
    content = path.read_bytes()
    with running(place) as daemon:
        for _ in range(3):
            done = courier.deliver(path, endpoint=f"ipc://{place}/s", log=LOG, timeout_s=10.0)
            assert (done.messages, done.left, done.problem) == (30, 0, "")
            assert not path.exists()
            path.write_bytes(content)
        assert daemon.messages() == list(range(30))


@pytest.mark.sockets
def test_a_damaged_message_leaves_a_gap_and_the_file_is_kept_aside(place: Path) -> None:
    path = written(place, 6)
    found = spool.look(path)[0]
    content = bytearray(path.read_bytes())
    content[found.records[3].place.offset + 50] ^= 1
    path.write_bytes(content)
    with running(place) as daemon:
        done = courier.deliver(path, endpoint=f"ipc://{place}/s", log=LOG, timeout_s=10.0)
        assert done.damaged
        assert done.left == 0
        stored = [meta for metas in daemon.stored.values() for meta in metas]
    assert len(stored) == 6
    assert [meta.reason for meta in stored if "damaged on disk" in meta.reason] == [stored[3].reason]
    assert [file.name for file in place.glob("*.spool*")] == [path.name + spool.CORRUPT]


@pytest.mark.sockets
def test_without_a_daemon_the_file_stays_as_it_is(place: Path) -> None:
    path = written(place, 3)
    before = path.read_bytes()
    start = time.monotonic()
    done = courier.deliver(path, endpoint=f"ipc://{place}/s", log=LOG, timeout_s=10.0)
    assert time.monotonic() - start < 2.0
    assert done.left == 3
    assert done.problem
    assert path.read_bytes() == before


@pytest.mark.sockets
def test_a_store_that_lost_the_beginning_gets_a_gap_and_the_rest(place: Path) -> None:
    path = written(place, 4, first=3)
    with running(place) as daemon:
        done = courier.deliver(path, endpoint=f"ipc://{place}/s", log=LOG, timeout_s=10.0)
        assert done.left == 0
        [stored] = [metas for metas in daemon.stored.values() if metas]
    assert "lost 3 messages" in stored[0].reason
    assert [meta.step for meta in stored[1:]] == [3, 4, 5, 6]


CLIENT = textwrap.dedent(
    """
    import logging, sys
    from pathlib import Path
    from ncmon_client.outbox import Outbox
    from ncmon_client.sender import Sender
    from tests.messages import Prepared, make_gap, make_info
    place, level, first = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    outbox = Outbox()
    sender = Sender(endpoint=f"ipc://{place}/s", run=make_info(), outbox=outbox, log=logging.getLogger(),
                    level=level, place=place / "spool")
    for step in range(first, first + 100_000):
        if outbox.offer(Prepared(make_gap(step=step)), 100):
            sender.start()
            sender.wake()
            if level == "memory" or sender.settle():
                print(step, flush=True)
    """
)


def killed_clients(place: Path, level: str, times: int) -> tuple[list[int], Daemon]:
    """Kill clients of one run in the middle of their work, with the daemon coming and going; return what they said."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root}:{root / 'client'}"}
    daemon = Daemon(f"ipc://{place}/s")
    accepted: list[int] = []
    rng = random.Random(3)
    for turn in range(times):
        if turn % 3 == 1:
            daemon.start()
        with open(place / "out", "wb") as out:
            child = subprocess.Popen(
                [sys.executable, "-c", CLIENT, str(place), level, str(turn * 100_000)], stdout=out, env=environment
            )
        wait_for(lambda: (place / "out").stat().st_size > 1000, "a client to accept windows")
        time.sleep(rng.uniform(0.0, 0.1))
        child.kill()
        child.wait()
        # The last line may be incomplete: then it was not said.
        said = (place / "out").read_text()
        accepted += [int(line) for line in said[: said.rfind("\n")].splitlines()]
        if turn % 3 == 1:
            daemon.stop()
    daemon.start()
    for path in spool.files(place / "spool"):
        done = courier.deliver(path, endpoint=f"ipc://{place}/s", log=LOG, timeout_s=30.0)
        assert done.left == 0, done
    daemon.stop()
    return accepted, daemon


@pytest.mark.sockets
def test_a_client_killed_at_level_always_loses_and_doubles_nothing_that_it_accepted(place: Path) -> None:
    accepted, daemon = killed_clients(place, "always", 4)
    stored = daemon.messages()
    assert len(accepted) > 800
    assert set(accepted) <= set(stored)
    assert len(stored) == len(set(stored))


@pytest.mark.sockets
def test_a_client_killed_at_level_memory_does_lose(place: Path) -> None:
    """The control: without the spool the test above fails."""
    accepted, daemon = killed_clients(place, "memory", 1)
    assert set(accepted) - set(daemon.messages())
