"""Text that the user gives: a file, read in pieces, as UTF-8 whatever encoding its mark names.

What is not text is told by its first bytes, and what would make it text is said.
"""

from __future__ import annotations

import codecs
import errno
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO, FileIO
from pathlib import Path

from dsconv.convert.files.local_files import open_regular
from dsconv.errors import InputError

PIECE = 1 << 22  # bytes read at a time
HELD = 256 << 20  # bytes of a text that has to be in memory: other encodings, pipes
NOTHING = b" \t\r\n"

# The longer marks first: UTF-32's begins with UTF-16's.
WIDE = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_TABLE = (
    "with pandas and pyarrow installed: python -c \"import pandas; pandas.read_{kind}('FILE')"
    ".to_json('FILE.jsonl', orient='records', lines=True, force_ascii=False)\""
)
SIGNS = (
    (b"\x1f\x8b", "gzip", "unpack it: gzip -dc FILE > TEXT"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it: zstd -dc FILE > TEXT"),
    (b"\xfd7zXZ\0", "xz", "unpack it: xz -dc FILE > TEXT"),
    (b"BZh", "bzip2", "unpack it: bzip2 -dc FILE > TEXT"),
    (b"\x04\x22\x4d\x18", "lz4", "unpack it: lz4 -dc FILE > TEXT"),
    (b"PK\x03\x04", "zip (or a spreadsheet or text document)", "unpack or export it as text"),
    (b"7z\xbc\xaf\x27\x1c", "7z", "unpack it: 7z x FILE"),
    (b"PAR1", "Parquet", _TABLE.format(kind="parquet")),
    (b"ARROW1", "Arrow", _TABLE.format(kind="feather")),
    (
        b"\xff\xff\xff\xff",
        "Arrow stream, as datasets.save_to_disk writes",
        "with datasets installed: python -c \"import datasets; datasets.Dataset.from_file('FILE')"
        ".to_json('FILE.jsonl', force_ascii=False)\"",
    ),
    (b"SQLite format 3\0", "SQLite", "export its rows as .jsonl"),
    (b"\x89HDF\r\n\x1a\n", "HDF5", "export its rows as .jsonl"),
    (b"%PDF", "PDF", "take its text: pdftotext FILE TEXT"),
    (b"GGUF", "GGUF model", "name a text"),
    (b"\x93NUMPY", "NumPy", "name a text"),
    (b"\x80\x04", "pickle", "name a text"),
    (b"\x80\x05", "pickle", "name a text"),
    (b"version https://git-lfs.github.com/spec", "pointer of Git LFS", "fetch it: git lfs pull"),
)


class TextFile:
    """The bytes of a text in UTF-8, without its mark; only what is asked for is in memory."""

    def __init__(self, path: Path, source: FileIO | BytesIO, start: int, end: int) -> None:
        self.path = path
        self._source, self._start = source, start
        self.size = end - start

    def read(self, start: int, end: int) -> bytes:
        """Raises InputError: it became shorter, or cannot be read."""
        end = min(end, self.size)
        found = bytearray()
        try:
            self._source.seek(self._start + start)
            while len(found) < end - start:
                piece = self._source.read(end - start - len(found))
                if not piece:
                    raise InputError(
                        f"{self.path}: became shorter while it was read",
                        "wait for whoever writes it",
                    )
                found += piece
        except OSError as error:
            raise _unreadable(self.path, error) from error
        return bytes(found)

    def pieces(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(place, bytes) from `start` on."""
        for place in range(start, self.size, PIECE):
            yield place, self.read(place, place + PIECE)

    def sha256(self) -> str:
        digest = hashlib.sha256()
        for _, piece in self.pieces():
            digest.update(piece)
        return digest.hexdigest()

    def text(self, start: int, end: int) -> str:
        """As Python reads text files: CRLF and CR are LF.

        Raises:
            InputError: not UTF-8.
        """
        data = self.read(start, end)
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError as error:
            place = start + error.start
            raise InputError(
                f"{self.path}: not UTF-8 text: {error.reason} at byte {place}",
                "name its encoding, such as: iconv -f GB18030 -t UTF-8 FILE > TEXT",
            ) from error
        return text.replace("\r\n", "\n").replace("\r", "\n")

    def beginning(self, most: int) -> str:
        """The first `most` bytes, up to the end of a line; all of it where it is no longer.

        Raises:
            InputError: not UTF-8.
        """
        if self.size <= most:
            return self.text(0, self.size)
        data = self.read(0, most)
        end = data.rfind(b"\n") + 1
        while not end and most and data[most - 1] & 0xC0 == 0x80:  # not inside a character
            most -= 1
        return self.text(0, end or most - 1)


@contextmanager
def open_text(path: Path, pipe: bool = False) -> Iterator[TextFile]:
    """Open a text file.

    Args:
        pipe: what can be read once only will do.

    Raises:
        InputError: it cannot be read, is empty, or is no text.
    """
    try:
        source = _from_pipe(path) if pipe and _is_pipe(path) else open_regular(path)
    except OSError as error:
        raise _unreadable(path, error) from error
    with source:
        yield _opened(path, source)


def read_text_file(path: Path) -> str:
    """The whole content, whatever it is.

    Raises:
        InputError: as `open_text`; or not UTF-8.
    """
    with open_text(path, pipe=True) as file:
        return file.text(0, file.size)


def _opened(path: Path, source: FileIO | BytesIO) -> TextFile:
    file = TextFile(path, source, 0, source.seek(0, os.SEEK_END))
    head = file.read(0, PIECE)
    for mark, encoding in WIDE:
        if head.startswith(mark):
            file = _narrowed(file, encoding)
            head = file.read(0, PIECE)
            break
    if head.startswith(codecs.BOM_UTF8):
        start = len(codecs.BOM_UTF8)
        file = TextFile(path, file._source, start, start + file.size - start)
        head = head[start:]
    _refuse_what_is_no_text(path, head)
    if not head.strip() and (file.size <= PIECE or _is_blank(file)):
        raise InputError(f"{path}: the file is empty", "use a file with some text")
    return file


def _narrowed(file: TextFile, encoding: str) -> TextFile:
    """In UTF-8, in memory."""
    name = encoding.upper()
    cure = f"write it as UTF-8: iconv -f {name} -t UTF-8 FILE > TEXT"
    if file.size > HELD:
        raise InputError(f"{file.path}: {file.size} bytes of {name}, limit {HELD}", cure)
    try:
        data = file.read(0, file.size).decode(encoding).encode("utf-8")
    except UnicodeError as error:
        reason = f"not UTF-8 text, and not the {name} that its mark names"
        raise InputError(f"{file.path}: {reason}", cure) from error
    return TextFile(file.path, BytesIO(data), 0, len(data))


def _refuse_what_is_no_text(path: Path, head: bytes) -> None:
    for sign, name, cure in SIGNS:
        if head.startswith(sign):
            raise InputError(f"{path}: a file of the kind {name}, not text", cure)
    if b"\0" in head:
        raise InputError(
            f"{path}: holds zero bytes: no text, or UTF-16 without a mark",
            "if it is text: iconv -f UTF-16LE -t UTF-8 FILE > TEXT",
        )


def _is_blank(file: TextFile) -> bool:
    return not any(piece.strip() for _, piece in file.pieces())


def _is_pipe(path: Path) -> bool:
    mode = os.stat(path).st_mode
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


def _from_pipe(path: Path) -> BytesIO:
    with open(path, "rb") as stream:
        data = stream.read(HELD + 1)
    if len(data) > HELD:
        raise InputError(f"{path}: more than {HELD} bytes from a pipe", "write them to a file")
    return BytesIO(data)


def _unreadable(path: Path, error: OSError) -> InputError:
    hint = "name a file in that folder" if error.errno == errno.EISDIR else "check the path"
    return InputError(f"{path}: cannot read: {error.strerror}", hint)
