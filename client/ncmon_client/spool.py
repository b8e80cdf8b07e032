"""The spool: accepted messages in a file, for when this process ends before the daemon has them.

Rules of this module
- One file a process and rank, appended to by that process alone, which holds a lock on it for its life. A file whose
  lock can be taken was left behind: whoever takes it may deliver it (`courier`).
- A file holds messages of one stream, in order and without holes. Delivering it says HELLO for that same stream, so
  that the daemon's own number tells what it has already: nothing is stored twice, whoever delivers.
- It imports neither torch nor zmq. The daemon and the command line read files through this module too.

    file      "NCMSPOOL" format   then records; the first is the label: stream, endpoint and run
    record    32 bytes: magic, kind, seq, length of meta, length of blobs, crc32 of all of it; then meta and blobs

What a crash can do to a file: the last record may be incomplete, and is cut off. Anything else that does not match its
checksum is damage: the records around it are delivered, a gap stands in the place of those that are lost, and the file
is renamed aside instead of being removed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import weakref
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Literal, Self

import msgspec

from ncmon_client import wire
from ncmon_client.errors import ClientError, WireError
from ncmon_client.outbox import Packed, Place

Level = Literal["memory", "auto", "always", "fsync"]
SUFFIX = ".spool"
CORRUPT = ".corrupt"
PART = ".part"
MAX_FILE_BYTES = 2 * 1024**3
COMPACT_BYTES = 64 * 1024**2
"""A file in which more than half, and this much, is acknowledged is written anew."""
FREE_BYTES, FREE_SHARE = 256 * 1024**2, 0.02
"""The smaller of the two is left free: the training's own checkpoints are worth more than windows."""

_HEAD = b"NCMSPOOL\x01\x00\x00\x00"
_RECORD = struct.Struct("<4sBBHQIQI")
_MAGIC = b"NCSR"
_LABEL_KIND = 0
_MAX_BODY = wire.MAX_META_BYTES
_MAX_BLOBS = wire.MAX_BLOBS * wire.BLOB_CUT_BYTES


class SpoolError(ClientError):
    """A spool file cannot be written or read: the disk is full, the rights are missing, the bytes changed."""


class InUse(SpoolError):
    """The process that writes the file lives."""


class Label(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a file says of itself, enough to deliver it without the process that wrote it."""

    stream: bytes
    endpoint: str
    run: wire.RunInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One message of a file, by its number and place."""

    seq: int
    place: Place


@dataclass(frozen=True, slots=True, kw_only=True)
class Scan:
    """What a file holds."""

    label: Label
    records: tuple[Record, ...]
    torn_bytes: int = 0
    """Behind the last whole record: what was being written when the process ended."""
    damaged_bytes: int = 0
    """Between whole records."""


def directory() -> Path:
    """Return where spool files lie: `$NCMON_SPOOL`, else `ncmon/spool` in the XDG state directory."""
    named = os.environ.get("NCMON_SPOOL")
    if named:
        return Path(named).expanduser()
    base = os.environ.get("XDG_STATE_HOME")
    return (Path(base) if base else Path.home() / ".local" / "state") / "ncmon" / "spool"


def files(place: Path | None = None, *, run_id: str | None = None, rank: int | None = None) -> list[Path]:
    """Return the spool files of a directory, oldest first; of one run and rank if those are named."""
    beginning = "" if run_id is None else f"{run_id}-{'' if rank is None else f'{rank}-'}"
    try:
        with os.scandir(directory() if place is None else place) as found:
            named = [
                (entry.stat().st_mtime, entry.path)
                for entry in found
                if entry.name.endswith(SUFFIX) and entry.name.startswith(beginning) and entry.is_file()
            ]
    except OSError:
        return []
    return [Path(path) for _, path in sorted(named)]


class SpoolFile:
    """The open file of one process, or one that was left behind and is ours now. Not thread-safe."""

    def __init__(self, path: Path, file: FileIO, label: Label, *, sync: bool = False) -> None:
        self.path = path
        self.label = label
        self.max_bytes = MAX_FILE_BYTES
        self._file = file
        self._sync = sync
        self._end = os.fstat(file.fileno()).st_size
        self._begin = 0
        """Where the records begin, behind the label; known to who made the file."""
        _open_files.add(self)

    @classmethod
    def create(cls, label: Label, *, place: Path | None = None, sync: bool = False) -> Self:
        """Make a new file with its label, locked by us. Raises `SpoolError`."""
        folder = directory() if place is None else place
        path = folder / f"{label.run.run_id}-{label.run.rank}-{os.urandom(6).hex()}{SUFFIX}"
        with _spool_errors(path):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            _check_free(folder)
            file = _open_new(path)
            made = cls(path, file, label, sync=sync)
            try:
                made._write_label()
                if sync:
                    _sync_directory(folder)
            except BaseException:
                made.remove()
                raise
        return made

    @classmethod
    def take(cls, path: Path) -> tuple[Self, Scan]:
        """Take a file that was left behind: lock it, read it through and cut off a torn end.

        Raises `InUse` where its process lives, and `SpoolError` where it cannot be read; one without a legible label
        can be delivered by nobody and is renamed aside.
        """
        with _spool_errors(path):
            file = FileIO(path, "r+")
            try:
                _lock(file, path)
                found = scan(file)
            except WireError as error:
                file.close()
                aside = set_aside(path)
                raise SpoolError(f"{path.name} cannot be read ({error}); it is kept as {aside.name}") from None
            except BaseException:
                file.close()
                raise
            taken = cls(path, file, found.label)
            if found.torn_bytes:
                taken._end -= found.torn_bytes
                file.truncate(taken._end)
        return taken, found

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._end

    @property
    def holds_nothing(self) -> bool:
        """Whether there is only the label."""
        return self._end <= self._begin

    def append(self, seq: int, packed: Packed) -> Place:
        """Write one message at the end; all of it, or nothing and `SpoolError`."""
        record = _record(packed.kind, seq, packed.body, packed.blobs)
        length = sum(map(len, record))
        if self._end + length > self.max_bytes:
            raise SpoolError(f"{self.path} has reached {self.max_bytes >> 20} MB")
        with _spool_errors(self.path):
            _check_free(self.path.parent)
            place = Place(offset=self._end, length=length)
            self._write(record)
        return place

    def read(self, place: Place) -> Packed:
        """Return one message; raises `SpoolError` where the file no longer holds it."""
        with _spool_errors(self.path):
            raw = os.pread(self._file.fileno(), place.length, place.offset)
        parsed = _parse(raw)
        if parsed is None or parsed.length != len(raw):
            raise SpoolError(f"{self.path}: the record at byte {place.offset} does not match its checksum")
        body = raw[_RECORD.size : _RECORD.size + parsed.body]
        blobs = tuple(wire.cut(memoryview(raw)[_RECORD.size + parsed.body :]))
        return Packed(kind=parsed.kind, body=body, blobs=blobs)

    def reset(self) -> None:
        """Everything in it is acknowledged: keep the label only."""
        if self._begin and self._end > self._begin:
            with _spool_errors(self.path):
                self._file.truncate(self._begin)
                self._end = self._begin

    def rewrite(self, label: Label, messages: Iterable[tuple[int, Packed]]) -> list[Place]:
        """Replace the whole file by these messages under a new label, at once or not at all; return their places."""
        path = self.path.with_name(self.path.name + PART)
        with _spool_errors(path):
            path.unlink(missing_ok=True)
            new = SpoolFile(path, _open_new(path), label, sync=False)
            try:
                new._write_label()
                places = [new.append(seq, packed) for seq, packed in messages]
                os.fsync(new._file.fileno())
                path.replace(self.path)
            except BaseException:
                new.remove()
                raise
        self._file.close()
        self.label, self._file, self._begin, self._end = label, new._file, new._begin, new._end
        _open_files.discard(new)
        return places

    def remove(self) -> None:
        """Delete the file: everything in it is stored."""
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.with_name(self.path.name + PART).unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the file and its lock; what it holds is for somebody else to deliver."""
        _open_files.discard(self)
        with contextlib.suppress(OSError):
            self._file.close()

    def _write_label(self) -> None:
        body = msgspec.msgpack.encode(self.label)
        self._write((_HEAD, *_record(_LABEL_KIND, 0, body, ())))
        self._begin = self._end

    def _write(self, parts: Iterable[bytes]) -> None:
        try:
            end = self._end
            for part in parts:
                view = memoryview(part)
                while view:
                    done = os.pwrite(self._file.fileno(), view, end)
                    view, end = view[done:], end + done
            if self._sync:
                os.fdatasync(self._file.fileno())
            self._end = end
        except OSError:
            # Half a record at the end would be cut off by who reads it; this process goes on behind a whole one.
            with contextlib.suppress(OSError):
                self._file.truncate(self._end)
            raise


def scan(file: FileIO) -> Scan:
    """Read a file through, checking every sum; raises `WireError` where it is no spool file of ours."""
    file.seek(0)
    head = file.read(len(_HEAD))
    if head != _HEAD:
        raise WireError("spool", f"a spool file begins with {_HEAD[:8]!r}, this one with {head[:8]!r}")
    size = os.fstat(file.fileno()).st_size
    offset = len(_HEAD)
    label: Label | None = None
    records: list[Record] = []
    damaged = lost = 0
    while offset < size:
        file.seek(offset)
        parsed = _parse_at(file, size - offset)
        if parsed is None:
            following = _next_magic(file, offset + 1, size)
            lost += following - offset
            offset = following
            continue
        if lost:
            damaged, lost = damaged + lost, 0
        if label is None:
            if parsed.kind != _LABEL_KIND:
                break
            file.seek(offset + _RECORD.size)
            label = _label(file.read(parsed.body))
        elif parsed.kind in wire.SEQUENCED:
            records.append(Record(seq=parsed.seq, place=Place(offset=offset, length=parsed.length)))
        offset += parsed.length
    if label is None:
        raise WireError("spool", "its label is not legible")
    return Scan(label=label, records=tuple(records), torn_bytes=lost, damaged_bytes=damaged)


def look(path: Path) -> tuple[Scan, bool]:
    """Return what a file holds, and whether its process lives, without changing anything; raises `SpoolError`."""
    try:
        with FileIO(path) as file:
            try:
                fcntl.flock(file.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
                lives = False
            except OSError:
                lives = True
            return scan(file), lives
    except (OSError, WireError) as error:
        raise SpoolError(f"{path}: {error}") from None


def set_aside(path: Path) -> Path:
    """Rename a file that is of no use any more, so that it is not tried again; return its new name."""
    aside = path.with_name(path.name + CORRUPT)
    with contextlib.suppress(OSError):
        path.replace(aside)
    return aside


@dataclass(frozen=True, slots=True, kw_only=True)
class _Parsed:
    kind: int
    seq: int
    body: int
    length: int


def _record(kind: int, seq: int, body: bytes, blobs: Iterable[bytes]) -> tuple[bytes, ...]:
    blobs = tuple(blobs)
    fields = (_MAGIC, kind, 0, 0, seq, len(body), sum(map(len, blobs)))
    crc = zlib.crc32(_RECORD.pack(*fields, 0))
    for part in (body, *blobs):
        crc = zlib.crc32(part, crc)
    return (_RECORD.pack(*fields, crc), body, *blobs)


def _parse(raw: bytes) -> _Parsed | None:
    """Return the head of a record whose checksum is right, None where it is not."""
    if len(raw) < _RECORD.size:
        return None
    *fields, crc = _RECORD.unpack_from(raw)
    magic, kind, _, _, seq, body, blobs = fields
    length = _RECORD.size + body + blobs
    if magic != _MAGIC or body > _MAX_BODY or blobs > _MAX_BLOBS or length > len(raw):
        return None
    actual = zlib.crc32(memoryview(raw)[_RECORD.size : length], zlib.crc32(_RECORD.pack(*fields, 0)))
    return _Parsed(kind=kind, seq=seq, body=body, length=length) if actual == crc else None


def _parse_at(file: FileIO, left: int) -> _Parsed | None:
    head = file.read(_RECORD.size)
    if len(head) < _RECORD.size:
        return None
    magic, _, _, _, _, body, blobs, _ = _RECORD.unpack(head)
    if magic != _MAGIC or body > _MAX_BODY or blobs > _MAX_BLOBS or _RECORD.size + body + blobs > left:
        return None
    return _parse(head + file.read(body + blobs))


def _next_magic(file: FileIO, offset: int, size: int) -> int:
    """Return where the next record may begin, `size` where there is none."""
    step = 1 << 20
    while offset < size:
        file.seek(offset)
        found = file.read(step + len(_MAGIC)).find(_MAGIC)
        if found >= 0:
            return offset + found
        offset += step
    return size


def _label(body: bytes) -> Label:
    try:
        label = msgspec.msgpack.decode(body, type=Label)
    except (msgspec.MsgspecError, UnicodeError) as error:
        raise WireError("spool", f"its label is not legible: {error}") from None
    if len(label.stream) != wire.STREAM_BYTES:
        raise WireError("spool", "its label names no stream")
    return label


def _open_new(path: Path) -> FileIO:
    # Not inherited by programs that the training starts; a forked child lets go of its copy in `_after_fork`.
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    # Without a buffer, so that a fork copies nothing that is half written.
    file = FileIO(handle, "r+")
    try:
        _lock(file, path)
    except BaseException:
        file.close()
        path.unlink(missing_ok=True)
        raise
    return file


def _lock(file: FileIO, path: Path) -> None:
    try:
        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise InUse(f"{path.name} is being written by a process that lives, or delivered by another one") from None
    # Between opening and locking somebody may have delivered and removed it, or written it anew.
    try:
        current = os.stat(path)
    except FileNotFoundError:
        raise InUse(f"{path.name} has just been delivered") from None
    if not os.path.samestat(current, os.fstat(file.fileno())):
        raise InUse(f"{path.name} has just been written anew")


def _check_free(folder: Path) -> None:
    disk = os.statvfs(folder)
    if disk.f_bavail * disk.f_frsize < min(FREE_BYTES, FREE_SHARE * disk.f_blocks * disk.f_frsize):
        raise OSError(errno.ENOSPC, "the disk is nearly full, the rest is left to the training")


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextlib.contextmanager
def _spool_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SpoolError(f"{path}: {error.strerror or error}") from None


_open_files: weakref.WeakSet[SpoolFile] = weakref.WeakSet()


def _after_fork() -> None:
    # The lock belongs to the open file, which the child shares: kept open, it would outlive the process that writes.
    for one in list(_open_files):
        with contextlib.suppress(OSError):
            one._file.close()
    _open_files.clear()


os.register_at_fork(after_in_child=_after_fork)
