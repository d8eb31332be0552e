"""Model families: one file each; the table below maps a config to its family.

llama, qwen2, qwen3  the families
architecture which of them a config.json means
base         what a decoder is, said once against a small vocabulary of operations
rope         rotary embedding and its scalings
rope_config  where config.json says which
config_keys  keys that families share
known_keys   every key that is known, and what becomes of it
inventory    the interpreter that lists what a checkpoint must hold
wiring       the interpreter that tells what each linear map reads
"""

from __future__ import annotations

from dsconv.convert.files.json_file import ConfigReader

from .architecture import choose_family
from .base import Decoder
from .llama import Llama
from .qwen2 import Qwen2
from .qwen3 import Qwen3

FAMILIES: tuple[type[Decoder], ...] = (Llama, Qwen2, Qwen3)


def read_family(reader: ConfigReader) -> Decoder:
    """Build the decoder that a config.json describes.

    Raises:
        InputError: `architectures` is malformed, or a key has a wrong value.
        UnsupportedError: no such family, or a key asks for behaviour that is not implemented.
    """
    return choose_family(reader, FAMILIES).from_config(reader)
