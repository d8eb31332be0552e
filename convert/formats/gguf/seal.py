"""What a GGUF file says of itself: what it was made from, and a hash over all of it.

One key holds a JSON object, the same fields as dsconv.json has. Its `self_sha256` is that of the
data and then of everything in front of it, with 64 zeros in this hash's place: in this order the
data is hashed while it is written.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO

from dsconv import __version__
from dsconv.convert.checkpoint.manifest import Provenance
from dsconv.convert.files.hashes import HASH_PLACEHOLDER, Digest
from dsconv.convert.files.json_file import parse_json

from .container import read_header

KEY = "dsconv.provenance"
FORMAT_VERSION = 1
SELF_HASH = "self_sha256"
PIECE = 1 << 20  # bytes read at a time


def provenance_text(source: Provenance, own_hash: str = HASH_PLACEHOLDER) -> str:
    """The value of KEY; its length depends on no hash."""
    content = {
        "format_version": FORMAT_VERSION,
        "source": source.to_json(),
        "versions": {"dsconv": __version__},
        SELF_HASH: own_hash,
    }
    return json.dumps(content, sort_keys=True)


class HashedFile:
    """Appends to a file and hashes what it appends."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.start = file.tell()
        self.digest: Digest = hashlib.sha256()

    def write(self, data: Any) -> None:
        if view := memoryview(data):
            flat = view.cast("B")  # as hashlib wants it
            self._file.write(flat)
            self.digest.update(flat)

    def pad(self, alignment: int) -> None:
        self.write(bytes(-self._file.tell() % alignment))


def seal(path: Path, header_bytes: int, data: Digest, source: Provenance, announced: str) -> None:
    """Put the hashes where `announced`, a text with placeholders, stands in the header."""
    with path.open("r+b") as file:
        header = file.read(header_bytes)
        start = header.index(announced.encode())
        text = provenance_text(source).encode()
        data.update(header.replace(announced.encode(), text))
        file.seek(start)
        file.write(provenance_text(source, data.hexdigest()).encode())


def is_sealed(path: Path) -> bool:
    """Raises InputError: no GGUF file, or a damaged one."""
    return _own_hash(read_header(path)[0]) is not None


def seal_is_intact(path: Path) -> bool:
    """Is every byte the one that was written? False for a file without a hash.

    Raises:
        InputError: no GGUF file, or a damaged one.
    """
    metadata, tensors = read_header(path)
    own = _own_hash(metadata)
    if own is None:
        return False
    before = f'"{SELF_HASH}": "{own}"'.encode()
    after = f'"{SELF_HASH}": "{HASH_PLACEHOLDER}"'.encode()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        header = file.read(min((tensor.offset for tensor in tensors.values()), default=0))
        while piece := file.read(PIECE):
            digest.update(piece)
    if header.count(before) != 1:
        return False
    digest.update(header.replace(before, after))
    return digest.hexdigest() == own


def _own_hash(metadata: dict[str, Any]) -> str | None:
    text = metadata.get(KEY)
    if not isinstance(text, str):
        return None
    content = parse_json(text.encode(), KEY)
    own = content.get(SELF_HASH) if isinstance(content, dict) else None
    return own if isinstance(own, str) and len(own) == len(HASH_PLACEHOLDER) else None
