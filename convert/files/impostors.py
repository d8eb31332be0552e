"""What a file is when it is not what its name says: told by its first bytes.

A clone without Git LFS leaves pointers in place of weights; a download through a portal saves its
error page; a download that was cut short leaves zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

LFS = b"version https://git-lfs.github.com/spec/"
HEAD_BYTES = 512  # are enough to know any of them
AGAIN = "download the file again"
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Impostor:
    """What it is, and the cure."""

    what: str
    hint: str


POINTER = Impostor(
    "a Git LFS pointer, not the file itself",
    "run git lfs pull in its folder, or download the model with dsconv pull",
)
EMPTY = Impostor("empty (0 bytes)", AGAIN)
ZEROS = Impostor("begins with zeros: its download was not finished", AGAIN)
PAGE = Impostor("a web page, not the file itself", f"{AGAIN}; the server sent a page in its place")
# What a file begins with -> what it is.
BEGINNINGS = (
    (b"PK\x03\x04", "a zip archive, or a file of torch.save"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"Rar!", "a rar archive"),
    (b"GGUF", "a GGUF file"),
    (b"\x80\x02", "a pickle file"),
    (b"\x89HDF\r\n", "an HDF5 file"),
)
TAR_MARK, TAR_PLACE = b"ustar", 257
ARCHIVES = ("zip", "gzip", "zstd", "7z", "rar", "tar")


def impostor(head: bytes, size: int) -> Impostor | None:
    """None for what could be the file that it claims to be.

    Args:
        head: its first `HEAD_BYTES`.
        size: of the whole file.
    """
    if size == 0:
        return EMPTY
    if head.startswith(LFS):
        return POINTER
    text = head.removeprefix(BYTE_ORDER_MARK).lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml", b"<error")):
        return PAGE
    if len(head) >= 8 and not any(head):
        return ZEROS
    for beginning, what in BEGINNINGS:
        if head.startswith(beginning):
            return Impostor(what, _unpack(what))
    if head[TAR_PLACE : TAR_PLACE + len(TAR_MARK)] == TAR_MARK:
        return Impostor("a tar archive", "unpack it, and use the folder")
    return None


def _unpack(what: str) -> str:
    if what == "a GGUF file":
        return "name it .gguf, and use it by its own path"
    if any(word in what for word in ARCHIVES):
        return "unpack it, and use what is in it"
    return "use the model's safetensors files"
