"""GGUF input: tensors under Hugging Face names, read row by row, and the config they belong to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families import FAMILIES, read_family
from dsconv.convert.families.rope import Llama3Scaling, Rope
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError, UnsupportedError

from .container import TYPES, GgufTensor, read_blocks, read_header
from .read_tokenizer import tokenizer_files

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
# Keys that change what the network computes, with the values that leave it as we compute it.
NEUTRAL_VALUES: Mapping[str, tuple[Any, ...]] = {
    "general.type": ("model",),
    "split.count": (0, 1),
    "{arch}.expert_count": (0,),
    "{arch}.attention.causal": (True,),
    "{arch}.attention.scale": (),
    "{arch}.attention.clamp_kqv": (0,),
    "{arch}.attention.max_alibi_bias": (0,),
    "{arch}.attn_logit_softcapping": (),
    "{arch}.final_logit_softcapping": (),
    "{arch}.logit_scale": (1,),
    "{arch}.residual_scale": (1,),
    "{arch}.embedding_scale": (1,),
    "{arch}.use_parallel_residual": (False,),
    "{arch}.rope.dimension_sections": (),
    "{arch}.rope.scaling.attn_factor": (1,),
    "{arch}.rope.scaling.yarn_log_multiplier": (0,),
}


class GgufSource:
    """The tensors of one GGUF file under Hugging Face names, dequantized as they are read."""

    def __init__(
        self, path: Path, tensors: Mapping[str, GgufTensor], interleaved: Mapping[str, int]
    ) -> None:
        self.path, self.tensors = path, tensors
        self.interleaved = interleaved  # tensors whose rotary pairs lie side by side: rows per head

    def names(self) -> list[str]:
        return list(self.tensors)

    def shape(self, name: str) -> tuple[int, ...]:
        return self.tensors[name].shape

    def storage(self, name: str) -> str:
        return TYPES[self.tensors[name].kind][0]

    def dtype(self, name: str) -> str:
        kind = self.storage(name)
        return kind if kind in ("F32", "BF16") else "F16"

    def nbytes(self, name: str) -> int:
        return self.tensors[name].nbytes

    def files(self) -> list[Path]:
        return [self.path]

    def rows(self, name: str, start: int = 0, stop: int | None = None) -> NDArray[np.float32]:
        """Rows [start, stop) as float32; of interleaved ones the span that holds them is read."""
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        tensor = self.tensors[name]
        wanted = np.arange(start, tensor.shape[0] if stop is None else stop)
        if not wanted.size:
            return np.empty((0, *tensor.shape[1:]), np.float32)
        if name in self.interleaved:
            wanted = stored_row(wanted, self.interleaved[name])
        first = int(wanted.min())
        blocks = read_blocks(self.path, tensor, first, int(wanted.max()) + 1)
        if name in self.interleaved:
            blocks = blocks[wanted - first]
        with np.errstate(all="ignore"):  # of scales that are NaN or infinite; told where it matters
            values = dequantize(blocks, GGMLQuantizationType(tensor.kind))
        return np.asarray(values, np.float32).reshape(wanted.size, *tensor.shape[1:])


def stored_row(row: NDArray[np.int64], head_dim: int) -> NDArray[np.int64]:
    """Where llama.cpp put a row of q or k: it turns neighbours (2j, 2j + 1), we turn (j, j + half).

    Row `half * head_dim / 2 + j` of a head (half 0 or 1) became row `2j + half` of that head.
    """
    head, feature = np.divmod(row, head_dim)
    half, pair = np.divmod(feature, head_dim // 2)
    return np.asarray(head * head_dim + 2 * pair + half, np.int64)


def _hugging_face_name(name: str) -> str:
    """`blk.3.attn_q.weight` -> `model.layers.3.self_attn.q_proj.weight`; unknown names stay."""
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in MODULES:
        return name
    prefix = f"model.layers.{match[1]}." if match[1] else ""
    return f"{prefix}{MODULES[match[2]]}.{match[3]}"


def short_float(value: float) -> float:
    """The shortest decimal that is the same float32: 9.999999747378752e-06 -> 1e-05."""
    return float(str(np.float32(value)))


def _refuse_unsupported(metadata: ConfigReader, arch: str) -> None:
    neutral = {key.format(arch=arch): values for key, values in NEUTRAL_VALUES.items()}
    if arch == "llama":  # Qwen files carry a window that their models do not use
        neutral["llama.attention.sliding_window"] = (0,)
    for key, values in neutral.items():
        if metadata.has(key) and metadata.data[key] not in values:
            raise UnsupportedError(
                f"{metadata.where}: {key} = {metadata.data[key]!r} is not supported",
                "merge the parts with llama-gguf-split --merge"
                if key == "split.count"
                else f"supported: {', '.join(map(repr, values)) or 'absent'}",
            )


def _head_dim(metadata: ConfigReader, arch: str, hidden: int, heads: int) -> int:
    """Keys, values and rotary positions must agree on it."""
    default = hidden // heads or None
    head_dim = metadata.integer(f"{arch}.attention.key_length", default, high=limits.HIDDEN)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (size := metadata.integer(f"{arch}.{key}", head_dim)) != head_dim:
            raise UnsupportedError(
                f"{metadata.where}: {arch}.{key} = {size} is not supported",
                f"supported: the size of a head, {head_dim}",
            )
    return head_dim


def _rope_scaling(metadata: ConfigReader, arch: str) -> dict[str, Any] | None:
    """llama.cpp's rope.scaling keys; a factor without a type means linear, as it does there."""
    prefix = f"{arch}.rope.scaling"
    kind = metadata.string(f"{prefix}.type", "linear")
    factor = metadata.number(f"{prefix}.factor", metadata.number(f"{arch}.rope.scale_linear", 0.0))
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return None
    if kind not in ("linear", "yarn"):
        raise UnsupportedError(
            f"{metadata.where}: {prefix}.type = {kind!r} is not supported",
            "supported: none, linear, yarn",
        )
    scaling: dict[str, Any] = {"rope_type": kind, "factor": short_float(factor)}
    if kind == "yarn":
        original = metadata.integer(f"{prefix}.original_context_length")
        scaling["original_max_position_embeddings"] = original
        for name in ("beta_fast", "beta_slow"):
            if metadata.has(f"{prefix}.yarn_{name}"):
                scaling[name] = short_float(metadata.number(f"{prefix}.yarn_{name}"))
    return scaling


def _llama3_scaling(path: Path, tensor: GgufTensor, plain: Rope) -> dict[str, Any] | None:
    """llama.cpp stores Llama 3.1's scaling as one divisor per frequency; find its parameters."""
    divisors = GgufSource(path, {"": tensor}, {}).rows("").reshape(-1)
    unscaled = plain.frequencies()
    for factor in (1.0, 8.0, 32.0):  # none; Llama 3.1 and 3.3; Llama 3.2
        scaling = Llama3Scaling(factor, 1.0, 4.0, 8192)
        expected = unscaled / Rope(plain.theta, plain.head_dim, scaling).frequencies()
        if divisors.shape == expected.shape and np.allclose(divisors, expected, rtol=1e-4, atol=0):
            return None if factor == 1.0 else {"rope_type": "llama3", **vars(scaling)}
    raise UnsupportedError(
        f"{path}: tensor {ROPE_DIVISORS!r} is not the scaling of Llama 3.1 or 3.2",
        "convert the model's original checkpoint instead",
    )


def read_config(
    path: Path, metadata: ConfigReader, tensors: Mapping[str, GgufTensor]
) -> dict[str, Any]:
    """config.json as Hugging Face would write it; `tensors` under GGUF's names.

    Raises:
        InputError: a key or the embedding is missing.
        UnsupportedError: another architecture, or a key asks for what is not implemented.
    """
    arch = metadata.string("general.architecture")
    family = {known.model_type: known for known in FAMILIES}.get(arch)
    if family is None:
        raise UnsupportedError(
            f"{path}: general.architecture = {arch!r} is not supported",
            f"supported: {', '.join(known.model_type for known in FAMILIES)}",
        )
    _refuse_unsupported(metadata, arch)
    if "token_embd.weight" not in tensors:
        raise InputError(f"{path}: tensor 'token_embd.weight' is missing", "fetch the file again")
    table = tensors["token_embd.weight"]
    hidden = metadata.integer(f"{arch}.embedding_length", high=limits.HIDDEN)
    heads = metadata.integer(f"{arch}.attention.head_count", high=limits.HIDDEN)
    head_dim = _head_dim(metadata, arch, hidden, heads)
    rope = Rope(metadata.number(f"{arch}.rope.freq_base", 10000.0, low=1.0 + 1e-6), head_dim)
    scaling = _rope_scaling(metadata, arch)
    if ROPE_DIVISORS in tensors and scaling is None:
        scaling = _llama3_scaling(path, tensors[ROPE_DIVISORS], rope)
    elif ROPE_DIVISORS in tensors:
        raise UnsupportedError(
            f"{path}: {ROPE_DIVISORS!r} beside {arch}.rope.scaling", "supported: one of them"
        )
    config: dict[str, Any] = {
        "architectures": [family.architecture],
        "model_type": arch,
        "hidden_size": hidden,
        "intermediate_size": metadata.integer(f"{arch}.feed_forward_length"),
        "num_hidden_layers": metadata.integer(f"{arch}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": metadata.integer(f"{arch}.attention.head_count_kv", heads),
        "head_dim": head_dim,
        "hidden_act": "silu",
        "vocab_size": table.shape[0],
        "rms_norm_eps": short_float(metadata.number(f"{arch}.attention.layer_norm_rms_epsilon")),
        "max_position_embeddings": metadata.integer(f"{arch}.context_length"),
        "rope_theta": short_float(rope.theta),
        "rope_scaling": scaling,
        "tie_word_embeddings": "output.weight" not in tensors,
        "torch_dtype": {"F32": "float32", "BF16": "bfloat16"}.get(TYPES[table.kind][0], "float16"),
    }
    if arch != "qwen2":  # there biases belong to the architecture
        config["attention_bias"] = "blk.0.attn_q.bias" in tensors
    if arch == "llama":
        config["mlp_bias"] = "blk.0.ffn_gate.bias" in tensors
    for key in ("bos_token_id", "eos_token_id"):
        if metadata.has(f"tokenizer.ggml.{key}"):
            config[key] = metadata.integer(f"tokenizer.ggml.{key}", low=0)
    return config


def _source(path: Path, config: Mapping[str, Any], tensors: Mapping[str, GgufTensor]) -> GgufSource:
    named = {
        _hugging_face_name(name): tensor
        for name, tensor in tensors.items()
        if name != ROPE_DIVISORS
    }
    rotary = re.compile(r".*\.self_attn\.[qk]_proj\.(weight|bias)")
    interleaved = (
        {name: config["head_dim"] for name in named if rotary.fullmatch(name)}
        if config["model_type"] == "llama"
        else {}
    )
    return GgufSource(path, named, interleaved)


def open_gguf(path: Path) -> Checkpoint:
    """Open a GGUF file as the checkpoint that it was converted from.

    Raises:
        InputError, UnsupportedError: with file, key or tensor, and the cure.
    """
    data, tensors = read_header(path)
    metadata = ConfigReader(data, str(path))
    config = read_config(path, metadata, tensors)
    return Checkpoint(
        path,
        config,
        read_family(ConfigReader(config, str(path))),
        _source(path, config, tensors),
        tokenizer_files(metadata, config["vocab_size"]),
    )
