"""The tensors of GGUF files under Hugging Face names, dequantized row by row."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .container import GgufTensor, read_blocks
from .decode import dequantize

ROPE_DIVISORS = "rope_freqs.weight"
MODULES: Mapping[str, str] = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# What a float copy of a type is stored in, where that is not float16. Scales of MXFP4 are powers of
# two that float16 does not reach; every product of either 4-bit float is exact in bfloat16.
COPY_DTYPES: Mapping[str, str] = {
    **{"F32": "F32", "F64": "F32", "I8": "F32", "I16": "F32", "I32": "F32", "I64": "F32"},
    **{"BF16": "BF16", "MXFP4": "BF16", "NVFP4": "BF16"},
}
FLOAT_TYPES = ("F64", "F32", "F16", "BF16")


class GgufSource:
    """The tensors of one model under Hugging Face names, dequantized as they are read.

    files: all parts; interleaved: tensors whose rotary pairs lie side by side -> rows per head.
    """

    def __init__(
        self,
        files: Sequence[Path],
        tensors: Mapping[str, GgufTensor],
        interleaved: Mapping[str, int],
    ) -> None:
        self.tensors = tensors
        self.interleaved = interleaved
        self._files = list(files)

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def storage(self, name: str) -> str:
        return self.tensors[name].type_name

    def dtype(self, name: str) -> str:
        return COPY_DTYPES.get(self.storage(name), "F16")

    def nbytes(self, name: str) -> int:
        return self.tensors[name].nbytes

    def files(self) -> list[Path]:
        return list(self._files)

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) as float32; of interleaved ones the span that holds them is read."""
        tensor = self.tensors[name]
        wanted = np.arange(start, tensor.shape[0] if stop is None else stop)
        if not wanted.size:
            return np.empty((0, *tensor.shape[1:]), np.float32)
        if name in self.interleaved:
            wanted = stored_row(wanted, self.interleaved[name])
        if len(tensor.shape) == 1:
            return read_floats(tensor, 0, 1).reshape(-1)[wanted]
        first, last = int(wanted.min()), int(wanted.max())
        values = read_floats(tensor, first, last + 1)
        if name in self.interleaved:
            values = values[wanted - first]
        return values.reshape(wanted.size, *tensor.shape[1:])


def read_floats(tensor: GgufTensor, start: int, stop: int) -> NDArray[np.float32]:
    """Stored rows [start, stop) -> float32 [stop - start, weights of a row]."""
    with np.errstate(all="ignore"):  # of scales that are NaN or infinite; told where it matters
        return dequantize(read_blocks(tensor, start, stop), tensor.kind)


def stored_row(row: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Where llama.cpp put a row of q or k: it turns neighbours (2j, 2j + 1), we turn (j, j + half).

    Row `half * head_dim / 2 + j` of a head (half 0 or 1) became row `2j + half` of that head.
    """
    head, feature = np.divmod(row, head_dim)
    half, pair = np.divmod(feature, head_dim // 2)
    return np.asarray(head * head_dim + 2 * pair + half, np.int64)


def hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in MODULES:
        return name
    prefix = f"model.layers.{match[1]}." if match[1] else ""
    return f"{prefix}{MODULES[match[2]]}.{match[3]}"
