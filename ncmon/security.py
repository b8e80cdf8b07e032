"""Who may reach the daemon, and that there is one of it: socket directory, file modes and locks.

The defaults trust the owner of the account and nobody else. Sockets lie in a directory of mode 0700 that is made before
the first of them and is checked without following links; they are bound under a umask that leaves them 0600. What
other machines can reach is the business of `gate` and `keyring`.

A second bind on an ipc socket silently steals the first one, and two writers would each believe that they know what the
store expects next. Both are excluded by `flock`: the system lets go of it when the process ends, however it ends. The
lock files stay where they are; to remove one would let two processes lock two files of the same name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from ncmon.errors import ListenError, StoreError


def prepare_socket_directory(path: Path) -> None:
    """Make the directory of a socket, or check that the one that is there is ours and closed to everybody else."""
    directory = path.parent
    try:
        # Parents as everybody makes them; the last one private from the first moment.
        directory.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=0o700)
        status = directory.lstat()
    except OSError as error:
        raise ListenError(f"the socket directory {directory} cannot be made: {error.strerror}") from None
    if not stat.S_ISDIR(status.st_mode):
        kind = "a symbolic link" if stat.S_ISLNK(status.st_mode) else "not a directory"
        raise ListenError(f"the socket directory {directory} is {kind}: expected a directory of your own")
    if status.st_uid != os.geteuid():
        raise ListenError(
            f"the socket directory {directory} belongs to user {status.st_uid}, you are {os.geteuid()}: choose a "
            "directory of your own with --listen"
        )
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        raise ListenError(
            f"the socket directory {directory} has mode {mode:04o}, others could reach the socket: "
            f"chmod 700 {directory}"
        )


@contextlib.contextmanager
def private_files() -> Iterator[None]:
    """Let files and sockets that are made inside be readable and writable by their owner alone."""
    # The umask belongs to the whole process; the daemon has one thread that makes files.
    before = os.umask(0o177)
    try:
        yield
    finally:
        os.umask(before)


class Lock:
    """An exclusive lock on a file for the life of this process. It names its holder in the file."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path = path
        self._fd = fd

    @classmethod
    def take(cls, path: Path) -> Self:
        """Take the lock at once.

        Raises `BlockingIOError` where another process holds it and `OSError` where the file cannot be made.
        """
        # A link in the place of the lock file would have us lock, and write into, something else.
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(fd, 0)
            os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd)

    def release(self) -> None:
        """Let go; the file stays, empty."""
        if self._fd >= 0:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def holder(path: Path) -> str:
    """Return who holds a lock, as text for a message: `pid N`, or `another process` where the file does not say."""
    try:
        pid = path.read_text().strip()
    except (OSError, UnicodeError):
        pid = ""
    return f"pid {pid}" if pid.isdecimal() else "another process"


def held_by(path: Path) -> str:
    """Return who holds the lock of a socket or a database, empty where nobody does; changes nothing."""
    lock = _lock_path(path)
    try:
        fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return ""
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return ""
    except OSError:
        return holder(lock)
    finally:
        os.close(fd)


def lock_database(database: Path) -> Lock:
    """Lock a database against a second daemon; `StoreError` names the process that holds it."""
    # Through links, so that two names of one database are one lock.
    path = _lock_path(database.resolve())
    try:
        return Lock.take(path)
    except BlockingIOError:
        raise StoreError(
            f"{database} is served by {holder(path)}: one daemon serves a database, watch it with `ncmon watch`"
        ) from None
    except OSError as error:
        raise StoreError(f"{path} cannot be locked: {_why(error)}") from None


def lock_socket(socket: Path) -> Lock:
    """Lock a socket against a second daemon; `ListenError` names the process that holds it."""
    path = _lock_path(socket)
    try:
        return Lock.take(path)
    except BlockingIOError:
        raise ListenError(
            f"ipc://{socket} is served by {holder(path)}: stop it, or choose another socket with --listen"
        ) from None
    except OSError as error:
        raise ListenError(f"{path} cannot be locked: {_why(error)}") from None


def _lock_path(path: Path) -> Path:
    return path.with_name(path.name + ".lock")


def _why(error: OSError) -> str:
    return "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror or str(error)
