"""What an endpoint says that becomes part of a path is checked here first.

Names must be safe on every system, for a cache is copied from one to another.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from dsconv.errors import DownloadError, InputError

COMMIT = re.compile(r"[0-9a-f]{40}")
GIT_SHA1 = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
REVISION = re.compile(r"[\w.-]+(/[\w.-]+)*")
DEVICES = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|com[0-9¹²³]|lpt[0-9¹²³])", re.IGNORECASE)
FORBIDDEN = re.compile(r'[\x00-\x1f\x7f\\:*?"<>|]')
DRIVE = re.compile(r"[A-Za-z]:")
MAX_NAME_BYTES = 255  # of one part, as file systems have it
MAX_PATH_BYTES = 1024


def refuse_traversal(name: object, model: str) -> str:
    """No hub has such names: whoever lists one, even of a file that nobody needs, is none.

    Raises:
        DownloadError: absolute, `..`, a backslash, a drive, or no text.
    """
    if (
        not isinstance(name, str)
        or not name
        or any(mark in name for mark in ("\\", "\0"))
        or DRIVE.match(name)
        or any(part in ("", ".", "..") for part in name.split("/"))
    ):
        raise _hostile(f"{model}: file name {str(name)[:80]!r} leads out of its folder")
    return name


def check_file_name(name: str, model: str) -> str:
    """A relative path with `/`, every part of it an ordinary name on every system.

    Raises:
        DownloadError: it leads out of the folder, or some system has another meaning for it.
    """
    problem = _problem_of(name)
    if problem is not None:
        raise _hostile(f"{model}: file name {name[:80]!r} {problem}")
    return name


def _problem_of(name: str) -> str | None:
    if FORBIDDEN.search(name):
        return "has a character that no file name may have"
    try:
        encoded = [part.encode() for part in name.split("/")]
    except UnicodeEncodeError:
        return "is not Unicode"
    if not name or len(name.encode()) > MAX_PATH_BYTES:
        return f"has {len(name)} characters (at most {MAX_PATH_BYTES} bytes)"
    if any(not part or len(part) > MAX_NAME_BYTES for part in encoded):
        return f"has a part that is empty or longer than {MAX_NAME_BYTES} bytes"
    for part in name.split("/"):
        if part.strip(".") == "" or part != part.strip() or part.endswith("."):
            return "leads out of its folder, or begins or ends with a space or a dot"
        if DEVICES.fullmatch(part.partition(".")[0].rstrip()):
            return "is a device on Windows"
    return None


def check_file_names(names: Iterable[str], model: str) -> None:
    """All of them ordinary, and no two one file where upper and lower case are the same.

    Raises:
        DownloadError: they are not.
    """
    seen: dict[str, str] = {}
    for name in names:
        check_file_name(name, model)
        key = name.casefold()
        if key in seen:
            raise _hostile(f"{model}: file names {seen[key]!r} and {name!r} collide")
        seen[key] = name


def check_commit(commit: object, model: str) -> str:
    """Raises DownloadError when it is not 40 hexadecimal digits."""
    if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
        raise _hostile(f"{model}: commit {str(commit)[:80]!r} is not 40 hexadecimal digits")
    return commit


def check_hash(digest: object, kind: re.Pattern[str], name: str, model: str) -> str:
    """Raises DownloadError when it is not a hash of the kind."""
    if not isinstance(digest, str) or not kind.fullmatch(digest):
        raise _hostile(f"{model}: {name}: hash {str(digest)[:80]!r} is not one")
    return digest


def check_size(size: object, name: str, model: str) -> int:
    """Raises DownloadError when it is no number of bytes."""
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size < 2**50:
        raise _hostile(f"{model}: {name}: size {str(size)[:80]} is not a number of bytes")
    return size


def check_revision(revision: str, model: str) -> None:
    """A branch, tag or commit as git allows it.

    Raises:
        InputError: something else.
    """
    if not REVISION.fullmatch(revision) or ".." in revision or revision.startswith((".", "-")):
        raise InputError(
            f"{model}: revision {revision!r} is not one", "use a branch, a tag or a commit"
        )


def _hostile(message: str) -> DownloadError:
    return DownloadError(
        message, "the endpoint does not answer as a hub does; HF_ENDPOINT chooses another"
    )
