"""Bytes of weights that one decode step must read: the numerator of the bandwidth fraction."""

from __future__ import annotations

from pathlib import Path

from dsconv.convert.families import read_family
from dsconv.convert.families.inventory import Role, parameters_of
from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.inspect.describe import describe

from .peers import PEERS
from .subject import OURS, Opened, Subject

TORCH_BYTES = 4  # the torch reference computes in float32


def weight_bytes_per_token(subject: Subject, opened: Opened) -> int:
    """All weights as they are stored, scales included, but for the table of embeddings.

    Of that a step reads a row; unless it is the head as well. A runtime that unpacks weights when
    it loads them reads more than this.
    """
    if subject.runtime != OURS:
        return PEERS[subject.runtime].weight_bytes_per_token(Path(subject.path))
    decoder = read_family(ConfigReader(opened.config, subject.path))
    roles = {parameter.name: parameter.role for parameter in parameters_of(decoder)}
    rows = describe(subject.path).tensors
    # A tied head that was quantized apart is a matrix that the family does not know.
    own_head = any(
        len(row.shape) == 2 and roles.get(row.name, Role.HEAD) is Role.HEAD for row in rows
    )
    read = [row for row in rows if not own_head or roles.get(row.name) is not Role.EMBEDDING]
    if opened.runtime == "torch":
        sizes = {parameter.name: parameter.size for parameter in parameters_of(decoder)}
        return sum(TORCH_BYTES * sizes.get(row.name, 0) for row in read)
    return sum(row.size_bytes for row in read)
