"""Puts outputs in place: nothing stands under its final name before it is complete.

The only module that does so.

An output folder is built as a sibling `NAME.partial`, every file and folder in it is fsynced, and
one rename makes it visible. An exception on the way removes the partial folder, unless the work can
be resumed: then only an error that would come again removes it. One process at a time: the partial
folder is locked until it stands under its final name.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator
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
        if final.is_dir() and not any(final.iterdir()) and not single_file:
            return
        ours = final.is_file() if single_file else (final / MANIFEST).is_file()
        replaceable = ours and not final.is_symlink()
    except OSError as error:
        raise output_error(error, final) from error
    if not replaceable:
        raise OutputError(
            f"{final}: already exists, and dsconv did not write it", "choose another folder with -o"
        )
    if not overwrite:
        hint = "choose another folder with -o, or replace it with --overwrite"
        raise OutputError(f"{final}: already exists", hint)


def partial_of(final: Path) -> Path:
    """Where the output is built."""
    final = final.absolute()
    return final.with_name(final.name + ".partial")


@contextmanager
def output_folder(final: Path, overwrite: bool = False, resume: bool = False) -> Iterator[Path]:
    """Yield a scratch folder that becomes `final` when the block ends without an exception.

    resume: use what an earlier run left in the scratch folder, and leave it after an interruption.

    Raises:
        OutputError: `final` exists (and `overwrite` is false), or the disk refuses.
    """
    final = final.absolute()
    refuse_existing(final, overwrite)
    partial = partial_of(final)
    try:
        partial.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(partial)
        if not resume:
            empty_folder(partial)
    except OSError as error:
        raise output_error(error, final) from error
    try:
        yield partial
        _fsync_tree(partial)
        _replace_folder(partial, final)
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


def lock_folder(folder: Path) -> int:
    """-> a descriptor that keeps other processes out until it is closed."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The other process may have finished since the folder was opened: then it has been renamed.
        free = folder.exists() and os.path.samestat(os.fstat(descriptor), folder.stat())
    except BlockingIOError:
        free = False
    except OSError:
        free = True  # some network file systems have no locks
    if not free:
        os.close(descriptor)
        raise OutputError(
            f"{folder}: another dsconv is writing there", "wait until it has finished"
        )
    return descriptor


def empty_folder(folder: Path) -> None:
    """Remove everything in a folder."""
    for path in folder.iterdir():
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


def _remove_file(path: Path) -> None:
    with suppress(OSError):
        path.unlink()


def _replace_folder(partial: Path, final: Path) -> None:
    """Rename `partial` to `final`; an old `final` is moved away first and removed last."""
    retired = final.with_name(final.name + ".replaced")
    if final.exists():
        if retired.exists():
            shutil.rmtree(retired)
        os.rename(final, retired)
    try:
        os.rename(partial, final)
    except BaseException:
        if retired.exists():
            os.rename(retired, final)
        raise
    fsync_path(final.parent)
    if retired.exists():
        shutil.rmtree(retired)


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
