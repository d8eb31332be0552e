"""Opening files of a folder that somebody else made: regular files only, names that stay there.

A pipe or a device in place of a file would block or never end; a name such as `../../secret` would
lead to files that are nobody's business.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from io import FileIO
from pathlib import Path

from dsconv.errors import InputError

from . import limits

NAME_MAX = 255  # bytes of one component on the file systems in use
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|\ud800-\udfff]')


def open_regular(path: Path) -> FileIO:
    """Open a file for reading, without a buffer of its own; never waits for anyone.

    Raises:
        InputError: it is a folder, a pipe, a device, …
        OSError: it cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags | getattr(os, "O_CLOEXEC", 0))
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.ENOENT, str(error)) from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # a socket
            raise _not_regular(path, "a socket") from error
        raise
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise _not_regular(path, "a pipe" if stat.S_ISFIFO(mode) else "a device")
    return FileIO(descriptor, "rb")


def _not_regular(path: Path, what: str) -> InputError:
    return InputError(f"{path}: is {what}, not a regular file", "replace it by the real file")


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        InputError: it is larger, no regular file, or cannot be read.
    """
    try:
        with open_regular(path) as file:
            size = os.fstat(file.fileno()).st_size
            if size > limit:
                raise InputError(
                    f"{path}: {size} bytes, limit {limit}", "this is not the file it claims to be"
                )
            content = bytearray()
            while piece := file.read(size + 1 - len(content)):
                content += piece
    except OSError as error:
        raise InputError(
            f"{path}: cannot read: {error.strerror}", "check the path and its permissions"
        ) from error
    if len(content) != size:
        raise InputError(f"{path}: changes while it is read", "wait for whoever writes it")
    return bytes(content)


def safe_join(folder: Path, name: object, where: str, *, folders: bool = False) -> Path:
    """The file `name` of a folder; every name that comes out of a file goes through here.

    folders: the name may have folders in it, separated by `/`. where: the file that says the name.

    Raises:
        InputError: the name is no text, leads out of the folder, or is none that every system has.
    """
    problem = _problem(name, folders)
    if problem:
        shown = repr(name)
        raise InputError(
            f"{where}: file name {shown[:200]}: {problem}", "the file is damaged or hostile"
        )
    return folder / str(name)


def _problem(name: object, folders: bool) -> str | None:
    if not isinstance(name, str) or not name:
        return "not a name"
    found = FORBIDDEN.search(name)
    if found:
        return f"the character {found[0]!r}"
    parts = name.split("/")
    if len(parts) > 1 and not folders:
        return "not a plain file name: it leads out of the folder"
    if any(part in ("", ".", "..") for part in parts):
        return "not a plain file name: it leads out of the folder"
    if len(name.encode()) > limits.NAME_BYTES or any(len(p.encode()) > NAME_MAX for p in parts):
        return f"{len(name.encode())} bytes, limit {min(limits.NAME_BYTES, NAME_MAX)}"
    return None
