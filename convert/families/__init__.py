"""Model families: one file each; the table below maps a config to its family.

llama, qwen2, qwen3  the families
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
from dsconv.errors import UnsupportedError

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
    known = {family.architecture: family for family in FAMILIES}
    architectures = reader.data.get("architectures")
    if architectures is None:  # some converted checkpoints carry model_type alone
        by_type = {family.model_type: family.architecture for family in FAMILIES}
        model_type = reader.string("model_type")
        architectures = [by_type.get(model_type, model_type)]
    if not isinstance(architectures, list) or not architectures:
        raise reader.fail("architectures", f"{architectures!r} is not a list of names")
    name = architectures[0]
    if not isinstance(name, str) or name not in known:
        raise UnsupportedError(
            f"{reader.where}: architecture {name!r} is not supported",
            f"supported: {', '.join(known)}",
        )
    return known[name].from_config(reader)
