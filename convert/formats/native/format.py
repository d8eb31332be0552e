"""What the `__metadata__` of a `.dsq` file holds, and its text form.

The file is a safetensors container: matrices as bytes in the kernels' order, vectors as float32,
large side files (tokenizer.json) as bytes. Everything else is here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dsconv.convert.files import limits
from dsconv.convert.files.hashes import HASH_PLACEHOLDER
from dsconv.convert.files.json_file import ConfigReader, parse_json
from dsconv.errors import InputError

from .linear_layout import KINDS, LinearLayout
from .steps import Program

SUFFIX = ".dsq"
FORMAT_VERSION = 1
FORMAT_KEY = "dsq_format_version"
HEADER_HASH = "header_sha256"
SIDE_FILE_PREFIX = "side_file:"
SMALL_SIDE_FILE_BYTES = 1 << 16  # larger ones would make the header slow to parse


@dataclass(frozen=True)
class Metadata:
    """matrices: name of the tensor -> what its bytes hold; sha256: of every tensor's bytes.

    side_files: the small ones, as text. origin: where it came from and what wrote it.
    header_sha256: of the header as it lies in the file, length and padding included, with 64 zeros
    in this hash's place; "" in files that were written before there was one.
    """

    format_version: int
    config: Mapping[str, Any]
    context_length: int
    program: Program
    matrices: Mapping[str, LinearLayout]
    side_files: Mapping[str, str]
    sha256: Mapping[str, str]
    origin: Mapping[str, str]
    header_sha256: str = ""

    def encode(self) -> dict[str, str]:
        matrices = {name: asdict(layout) for name, layout in self.matrices.items()}
        return {
            FORMAT_KEY: str(self.format_version),
            "config": _text(self.config),
            "context_length": str(self.context_length),
            "program": _text(self.program.to_json()),
            "matrices": _text(matrices),
            "side_files": _text(self.side_files),
            "sha256": _text(self.sha256),
            "origin": _text(self.origin),
            HEADER_HASH: _text(self.header_sha256),
        }

    @classmethod
    def decode(cls, found: Mapping[str, str], where: str) -> Metadata:
        """Parse the texts of a file.

        Raises:
            InputError: not a `.dsq` file, another version of it, or malformed.
        """
        if FORMAT_KEY not in found:
            raise InputError(
                f"{where}: a safetensors file, but not a native one: {FORMAT_KEY} is missing",
                "make one with dsconv export --format native",
            )
        if found[FORMAT_KEY] != str(FORMAT_VERSION):
            raise InputError(
                f"{where}: format version {found[FORMAT_KEY][:20]!r}, this dsconv reads "
                f"{FORMAT_VERSION}",
                "export the model again with this dsconv, or use the dsconv that wrote the file",
            )
        length = ConfigReader({"context_length": _number(found, where)}, where)
        return cls(
            FORMAT_VERSION,
            _object(found, "config", where).data,
            length.integer("context_length"),
            Program.read(_object(found, "program", where)),
            _read_matrices(_object(found, "matrices", where)),
            _texts(_object(found, "side_files", where)),
            _texts(_object(found, "sha256", where)),
            _texts(_object(found, "origin", where)),
            _header_hash(found),
        )


def _text(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=True)


def _header_hash(found: Mapping[str, str]) -> str:
    text = found.get(HEADER_HASH, "")
    digest = text[1:-1]
    return digest if re.fullmatch(f"[0-9a-f]{{{len(HASH_PLACEHOLDER)}}}", digest) else ""


def _number(found: Mapping[str, str], where: str) -> int:
    text = found.get("context_length", "")
    if not text.isascii() or not text.isdigit() or len(text) > 12:
        raise InputError(f"{where}: context_length: {text[:20]!r}", "export the model again")
    return int(text)


def _object(found: Mapping[str, str], key: str, where: str) -> ConfigReader:
    label = f"{where}: {key}"
    value = parse_json(found.get(key, ""), label, escaped_bytes=key == "side_files")
    if not isinstance(value, dict):
        raise InputError(f"{label}: not an object", "export the model again")
    return ConfigReader(value, label)


def _texts(reader: ConfigReader) -> dict[str, str]:
    return {key: reader.string(key) for key in reader.data}


def _read_matrices(reader: ConfigReader) -> dict[str, LinearLayout]:
    found = {}
    for name in reader.data:
        entry = reader.child(name)
        if entry is None:
            raise reader.fail(name, "missing")
        kind = entry.string("kind")
        if kind not in KINDS:
            raise entry.fail("kind", f"{kind!r} is not known to this version of dsconv")
        group_size = entry.integer("group_size", low=0)
        if group_size % 16 or (group_size and not kind.startswith("int")):
            raise entry.fail("group_size", f"{group_size} for {kind}")
        found[name] = LinearLayout(
            kind,
            entry.integer("rows", high=limits.DIMENSION),
            entry.integer("cols", high=limits.DIMENSION),
            group_size,
            entry.boolean("zero_points", False),
        )
    return found
