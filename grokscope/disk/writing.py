"""Writing so that a file, or a folder, is there whole or not at all: after a kill, after a full disk, after a power cut.

The work goes to a scratch beside the place, under a name that nobody can predict, opened so that no link is followed. It
is forced to the disk, renamed, and the folder with the new name is forced too. While it is written the scratch is locked:
what lies there unlocked is of a process that died, and the next writer of the same place clears it away. Earlier versions named
a scratch by the process and did not lock it: such a one goes when no process has that number and nothing in it has changed for
a day, for it may be another machine's. What has any other name stays.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

_AT_CWD, _NO_REPLACE = -100, 1
"""Of Linux's renameat2."""
_DAY = 86_400.0


@contextmanager
def whole_file(path: str | Path, *, replace: bool = False) -> Iterator[IO[bytes]]:
    """The file under `path`, open for writing; it gets its name when the block ends, and where it fails nothing is left.

    replace: put it in the place of one that is there. Raises FileExistsError for one that is, else; OSError.
    """
    path = _named(path)
    if not replace and os.path.lexists(path):
        raise _exists(path)
    with _scratch(path, folder=False) as (scratch, handle), os.fdopen(handle, "wb", closefd=False) as file:
        yield file
        file.flush()
        os.fsync(handle)
        if replace:
            os.replace(scratch, path)
        else:
            _give_name(scratch, path)
    force(path.parent)


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """An empty folder to write in, which becomes `path` when the block ends; where it fails nothing is left.

    `path` may be an empty folder. Raises FileExistsError for anything else that is there.
    """
    path = _named(path)
    if os.path.lexists(path) and (not path.is_dir() or any(path.iterdir())):
        raise FileExistsError(
            f"{path}: wanted a new or an empty directory, got one that already holds something; name another"
        )
    with _scratch(path, folder=True) as (scratch, _):
        yield scratch
        force_all(scratch)
        with suppress(FileNotFoundError):
            path.rmdir()
        scratch.replace(path)
    force(path.parent)


def write_whole(path: str | Path, data: bytes, *, replace: bool = False) -> None:
    """These bytes as a file, whole or not at all."""
    with whole_file(path, replace=replace) as file:
        file.write(data)


def force(path: Path) -> None:
    """Ask the disk to have a file, or the names in a folder: a rename is there when its folder is."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def force_all(folder: Path) -> None:
    """The same of everything in a folder."""
    for where, _, names in os.walk(folder):
        for name in names:
            force(Path(where) / name)
        force(Path(where))


def _named(path: str | Path) -> Path:
    """A path with a name, beside which a scratch has its own: `.` has none."""
    return Path(path) if Path(path).name else Path(path).absolute()


def clear_stale(path: Path) -> None:
    """Remove what writers of `path` that died have left beside it."""
    pattern = re.compile(rf"\.{re.escape(_short(path.name))}\.(?:[0-9a-f]{{16}}|(\d{{1,10}}))\.part")
    with suppress(FileNotFoundError, NotADirectoryError):
        for name in os.listdir(path.parent):
            found = pattern.fullmatch(name)
            if found and (found[1] is None or _is_abandoned(path.parent / name, int(found[1]))):
                _remove_unlocked(path.parent / name)


def is_scratch(path: Path, name: str) -> bool:
    """Whether this is what a writer of `name`, of an earlier version too, has left, or is at work on."""
    return bool(re.fullmatch(rf"\.?{re.escape(_short(name))}\.([0-9a-f]{{16}}|\d{{1,10}})\.part", path.name))


def _is_abandoned(scratch: Path, process: int) -> bool:
    """Whether a scratch that nobody locks is of a process that is no more."""
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        inside = (os.path.join(where, name) for where, folders, names in os.walk(scratch) for name in (*folders, *names))
        with suppress(FileNotFoundError):
            return time.time() - max(os.lstat(p).st_mtime for p in (scratch, *inside)) > _DAY
    except PermissionError:  # another user's lives too
        pass
    return False


def _short(name: str) -> str:
    """As much of a name as leaves room for what a scratch adds to it."""
    return os.fsencode(name)[:200].decode("utf-8", "ignore")


@contextmanager
def _scratch(path: Path, *, folder: bool) -> Iterator[tuple[Path, int]]:
    if path.parent.exists() and not path.parent.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path.parent))
    path.parent.mkdir(parents=True, exist_ok=True) if folder else None
    clear_stale(path)
    scratch, handle = _locked(path, folder)
    try:
        yield scratch, handle
    finally:
        with suppress(FileNotFoundError):
            shutil.rmtree(scratch) if folder else scratch.unlink()
        os.close(handle)


def _locked(path: Path, folder: bool) -> tuple[Path, int]:
    """A new scratch, locked. Another writer may take it for a dead one's before the lock is there: then one more is made."""
    while True:
        scratch = path.with_name(f".{_short(path.name)}.{secrets.token_hex(8)}.part")
        if folder:
            scratch.mkdir()
            handle = os.open(scratch, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        else:
            handle = os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(BlockingIOError, FileNotFoundError):
            _lock(handle)
            if os.path.samestat(os.fstat(handle), os.lstat(scratch)):
                return scratch, handle
        os.close(handle)


def _lock(handle: int) -> None:
    """Raises BlockingIOError where another process has it. A disk that knows no locks has no dead ones cleared either."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
            raise


def _remove_unlocked(scratch: Path) -> None:
    with suppress(OSError):  # another's, or gone by now
        handle = os.open(scratch, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(scratch) if stat.S_ISDIR(os.fstat(handle).st_mode) else scratch.unlink()
        finally:
            os.close(handle)


def _give_name(scratch: Path, path: Path) -> None:
    """Rename, but never over a file: by the system's own call, else by a link, which fails where a name is taken."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    failed = errno.ENOSYS
    if rename is not None:
        done = rename(_AT_CWD, os.fsencode(scratch), _AT_CWD, os.fsencode(path), _NO_REPLACE)
        failed = ctypes.get_errno() if done else 0
    if failed in (errno.ENOSYS, errno.EINVAL):
        try:
            os.link(scratch, path, follow_symlinks=False)
        except OSError as error:
            failed = error.errno
        else:
            failed = 0
    if failed == errno.EEXIST:
        raise _exists(path)
    if failed:
        raise OSError(failed, os.strerror(failed), str(path))


def _exists(path: Path) -> FileExistsError:
    return FileExistsError(f"{path}: wanted a new name, got one that is there; name another, or remove it")
