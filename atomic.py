"""Puts outputs in place: nothing stands under its final name before it is complete.

The only module that does so. It also answers whether there is room for an output, before any work.

An output folder is built as a sibling `NAME.partial`, every file and folder in it is fsynced, and
one rename makes it visible. An exception on the way removes the partial folder, unless the work can
be resumed: then only an error that would come again removes it. One process at a time: what is
partial is locked until it stands under its final name. An old output is replaced in one step where
the system can exchange two names, so that a reader finds the old one or the new one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import DownloadError, OutputError

MANIFEST = "dsconv.json"  # lies in every folder that dsconv has finished


def output_error(error: OSError, path: Path) -> OutputError:
    """Translate what the operating system said about writing to `path`."""
    reason = error.strerror or str(error)
    hints = {
        errno.ENOSPC: "free some space or choose another disk with -o, then run the same command",
        errno.EDQUOT: "the quota of this account is used up; choose another disk with -o",
        errno.EROFS: "the file system is read-only; choose another folder with -o",
        errno.EACCES: "choose a folder you may write to with -o",
        errno.EPERM: "choose a folder you may write to with -o",
        errno.ENOTDIR: "a part of the path is a file; choose another folder with -o",
        errno.ENAMETOOLONG: "choose a shorter name with -o",
    }
    hint = hints.get(error.errno or 0, "choose another folder with -o")
    return OutputError(f"{path}: cannot write: {reason}", hint)


def fsync_path(path: Path) -> None:
    """Flush a file or a folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _fsync_tree(folder: Path) -> None:
    for root, _, files in os.walk(folder):
        for name in files:
            fsync_path(Path(root) / name)
        fsync_path(Path(root))


def real_output(final: Path) -> Path:
    """Where an output is put: a link to a folder is that folder, as for every other program."""
    final = final.absolute()
    return (
        Path(os.path.realpath(final)) if os.path.islink(final) and os.path.isdir(final) else final
    )


def refuse_existing(final: Path, overwrite: bool, single_file: bool = False) -> None:
    """Fail before any work when `final` is taken (and may not be replaced).

    `overwrite` replaces what dsconv wrote and nothing else: a mistyped -o must not cost a home.
    A `single_file` has no manifest; there the name, which has a suffix of its own, must do.

    Raises:
        OutputError: something stands at `final` that is not an empty folder.
    """
    try:
        if not os.path.lexists(final):
            return
        if final.is_dir() and os.path.ismount(real_output(final)):  # which no rename can replace
            raise OutputError(f"{final}: already exists: a mount point", "use a folder in it")
        if final.is_dir() and not any(final.iterdir()) and not single_file:
            return
        is_link_elsewhere = final.is_symlink() and not final.is_dir()
        replaceable = final.is_file() if single_file else (final / MANIFEST).is_file()
    except OSError as error:
        raise output_error(error, final) from error
    if is_link_elsewhere:
        target = os.path.realpath(final)
        what = target if os.path.exists(target) else f"{target}, which is not there"
        raise OutputError(
            f"{final}: already exists: a link to {what}",
            "remove the link, or choose another name with -o",
        )
    if not replaceable:
        raise OutputError(
            f"{final}: already exists, and dsconv did not write it", "choose another folder with -o"
        )
    if not overwrite:
        hint = "choose another folder with -o, or replace it with --overwrite"
        raise OutputError(f"{final}: already exists", hint)


def partial_of(final: Path) -> Path:
    """Where the output is built."""
    final = real_output(final)
    return final.with_name(final.name + ".partial")


@contextmanager
def output_folder(final: Path, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield a scratch folder that becomes `final` when the block ends without an exception.

    resume: use what an earlier run left in the scratch folder, and leave it after an interruption.

    Raises:
        OutputError: `final` exists (and `overwrite` is false), or the disk refuses.
    """
    refuse_existing(final, overwrite)
    final = real_output(final)
    partial = partial_of(final)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = lock_path(partial)
    except OSError as error:
        raise output_error(error, final) from error
    try:
        if _bring_back_what_was_retired(final):
            refuse_existing(final, overwrite)
        if not resume:
            empty_folder(partial)
        yield partial
        _fsync_tree(partial)
        _put_in_place(partial, final)
    except OSError as error:
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        if error.errno is None or isinstance(error, FileNotFoundError):
            raise
        raise output_error(error, final) from error
    except (OutputError, DownloadError, KeyboardInterrupt, SystemExit, MemoryError):
        if not resume:
            shutil.rmtree(partial, ignore_errors=True)
        raise
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    finally:
        os.close(lock)


def lock_path(path: Path, create: bool = False) -> int:
    """-> a descriptor that keeps other processes out until it is closed, or the process has died.

    create: the file, if it is not there.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT if create else os.O_RDONLY, 0o666)
    holder = ""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other process may have finished since the path was opened: then it has been renamed.
        free = path.exists() and os.path.samestat(os.fstat(descriptor), path.stat())
    except BlockingIOError:
        free, holder = False, _holder(descriptor)
    except OSError:
        free = True  # some network file systems have no locks
    if not free:
        os.close(descriptor)
        raise OutputError(
            f"{path}: another dsconv{holder} is writing there", "wait until it has finished"
        )
    return descriptor


def _holder(descriptor: int) -> str:
    """Which process holds the lock, where Linux tells."""
    number = str(os.fstat(descriptor).st_ino)
    with suppress(OSError, IndexError):
        for line in Path("/proc/locks").read_text("ascii").splitlines():
            # 1: FLOCK  ADVISORY  WRITE 4711 08:01:263170 0 EOF
            fields = line.split()
            if fields[1] == "FLOCK" and fields[5].rpartition(":")[2] == number:
                return f" (process {fields[4]})"
    return ""


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
        _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextmanager
def output_file(final: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a scratch path; the file written there becomes `final`, as with `output_folder`.

    Raises:
        OutputError: `final` exists (and `overwrite` is false), or the disk refuses.
    """
    final = final.absolute()
    refuse_existing(final, overwrite, single_file=True)
    partial = partial_of(final)
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_path(partial, create=True)
    except OSError as error:
        raise output_error(error, final) from error
    try:
        yield partial
        fsync_path(partial)
        os.replace(partial, final)
        fsync_path(final.parent)
    except OSError as error:
        _remove_file(partial)
        if error.errno is None:
            raise
        raise output_error(error, final) from error
    except BaseException:
        _remove_file(partial)
        raise
    finally:
        os.close(lock)


def _remove_file(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _put_in_place(partial: Path, final: Path) -> None:
    """Rename `partial` to `final`, then remove what stood there."""
    if not final.is_dir() or not any(final.iterdir()):
        os.rename(partial, final)
        fsync_path(final.parent)
        return
    old = lock_path(final)  # it will bear the name `partial`, which nobody else may use meanwhile
    try:
        if _exchange(partial, final):
            fsync_path(final.parent)
            shutil.rmtree(partial, ignore_errors=True)
        else:
            _retire_and_rename(partial, final)
    finally:
        os.close(old)


def _exchange(one: Path, other: Path) -> bool:
    """Let two names change places in one step; False where the system cannot."""
    at_current_folder, exchange = -100, 2  # of Linux
    try:
        rename = ctypes.CDLL(None).renameat2
    except (OSError, AttributeError):
        return False
    names = os.fsencode(one), os.fsencode(other)
    return bool(rename(at_current_folder, names[0], at_current_folder, names[1], exchange) == 0)


def _retired(final: Path) -> Path:
    """Where the old output lies for a moment, on file systems without `_exchange`."""
    return final.with_name(final.name + ".replaced")


def _retire_and_rename(partial: Path, final: Path) -> None:
    """In two steps; if the process dies between them, the next run brings the old output back."""
    retired = _retired(final)
    os.rename(final, retired)
    try:
        os.rename(partial, final)
    except BaseException:
        os.rename(retired, final)
        raise
    fsync_path(final.parent)
    _remove_output(retired)


def _bring_back_what_was_retired(final: Path) -> bool:
    """Restore what a process left that died in `_retire_and_rename`; False: there was nothing."""
    retired = _retired(final)
    if retired.is_symlink() or not os.path.isdir(retired):
        return False
    is_empty = not any(retired.iterdir())
    if not is_empty and not (retired / MANIFEST).is_file():
        return False  # somebody else's
    if is_empty or os.path.lexists(final):
        _remove_output(retired)
    else:
        os.rename(retired, final)
    return True


def _remove_output(folder: Path) -> None:
    """The manifest goes last: it tells that the folder is ours to remove."""
    for path in sorted(folder.iterdir(), key=lambda path: path.name == MANIFEST):
        _remove(path)
    folder.rmdir()


def link_or_copy(source: Path, target: Path, copy: bool = False) -> int:
    """Make `target` the same bytes as `source`: a hard link where the file system can, else a copy.

    Returns:
        The number of bytes really written (0 for a link).
    """
    source = source.resolve()  # never link to a symbolic link, e.g. of the hub's cache
    if not copy:
        try:
            os.link(source, target)
            return 0
        except OSError as error:
            cannot_link = {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP}
            if error.errno not in cannot_link:
                raise
    shutil.copyfile(source, target)
    return target.stat().st_size


def existing_folder(path: Path) -> Path:
    """The folder on whose disk `path` lies or would lie."""
    place = real_output(path).parent
    while not os.path.isdir(place) and place != place.parent:
        place = place.parent
    return place


def free_bytes(output: Path) -> int:
    """Where `output` would lie; what an unfinished run has left there is ours."""
    partial = partial_of(output)
    left = [*partial.glob("*")] if os.path.isdir(partial) else [partial]
    # In blocks: files of an unfinished run have holes.
    ours = sum(512 * path.stat().st_blocks for path in left if os.path.isfile(path))
    return shutil.disk_usage(existing_folder(output)).free + ours


def require_space(output: Path, needed: int) -> None:
    """
    Raises:
        OutputError: fewer bytes than `needed` are free; or the disk does not answer.
    """
    try:
        free = free_bytes(output)
    except OSError as error:
        raise output_error(error, output) from error
    if needed > free:
        raise OutputError(
            f"{output}: needs {needed:,} bytes of disk, {free:,} are free",
            "free some space, or choose another disk with -o",
        )


def bytes_to_copy(paths: Iterable[Path], output: Path, copy: bool) -> int:
    """Of files that are linked where they lie on the disk of `output`, unless `copy`."""
    here = existing_folder(output).stat().st_dev
    found = [path.stat() for path in paths]
    return sum(stat.st_size for stat in found if copy or stat.st_dev != here)
