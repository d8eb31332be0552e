"""What the keys of a GGUF file's metadata are to us: used, without effect, or refused.

A key under the architecture's name is a setting of its network. One that is neither used nor known
to do nothing is refused unless its value is that of "off": computing without it would be another
model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError

# Of the architecture: read by read_config.
USED = (
    *("block_count", "context_length", "embedding_length", "feed_forward_length"),
    *("attention.head_count", "attention.head_count_kv", "attention.layer_norm_rms_epsilon"),
    *("attention.key_length", "attention.value_length", "rope.dimension_count"),
    *("rope.freq_base", "rope.scale_linear", "rope.scaling.type", "rope.scaling.factor"),
    *("rope.scaling.original_context_length", "rope.scaling.attn_factor"),
    *("rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow"),
)
# Nothing in these architectures' networks reads them, in llama.cpp either.
WITHOUT_EFFECT = (
    "vocab_size",  # the embedding has as many rows
    "tensor_data_layout",  # names the order of rows that every file of `llama` has
    "rope.scaling.finetuned",
    "attention.layer_norm_epsilon",  # the norms are RMS norms
    "pooling_type",  # what becomes of the last hidden states, for embeddings
    *("expert_used_count", "expert_feed_forward_length", "expert_gating_func"),  # without experts
    *("expert_weights_norm", "expert_weights_scale"),
)
# Values that leave the network as we compute it; of keys that are not here, OFF.
OFF: tuple[Any, ...] = (0, False, "", [])
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "logit_scale": (0, 1),
    "residual_scale": (0, 1),
    "embedding_scale": (0, 1),
    "attention.output_scale": (0, 1),
    "attention.value_scale": (0, 1),
    "rope.scaling.alpha": (0, 1),
    "rope.scaling.yarn_attn_factor": (-1, 1),  # the paper's, in llama.cpp
    "num_loops": (0, 1),
}
GENERAL: Mapping[str, tuple[Any, ...]] = {"general.type": ("model",)}
# Their models were trained with a window that they do not use.
IGNORES_WINDOW = ("qwen2", "qwen3")
WINDOW = ("attention.sliding_window", "attention.sliding_window_pattern")


def neutral_values(arch: str, key: str) -> tuple[Any, ...] | None:
    """Which values of an architecture's key change nothing; None: all, or it is used."""
    if key in USED or key in WITHOUT_EFFECT or (arch in IGNORES_WINDOW and key in WINDOW):
        return None
    if key == "rope.scaling.yarn_ext_factor":
        return (-1, 0, 1)
    found: tuple[Any, ...] = NEUTRAL.get(key, OFF)
    return found


def refuse_unsupported(metadata: ConfigReader, arch: str) -> None:
    """Refuse settings that no interpreter has.

    Raises:
        UnsupportedError: naming file, key and value.
    """
    for key, values in GENERAL.items():
        if metadata.has(key) and metadata.data[key] not in values:
            raise _refusal(metadata, key, values)
    prefix = f"{arch}."
    for key, value in metadata.data.items():
        if not key.startswith(prefix):
            continue
        neutral = neutral_values(arch, key.removeprefix(prefix))
        if neutral is not None and not any(_same(value, good) for good in neutral):
            raise _refusal(metadata, key, neutral)
    _refuse_partial_yarn(metadata, arch)


def _same(value: Any, good: Any) -> bool:
    return bool(value == good) and isinstance(value, bool) == isinstance(good, bool)


def _refuse_partial_yarn(metadata: ConfigReader, arch: str) -> None:
    """yarn_ext_factor blends YaRN with linear interpolation: 0 is all linear, 1 all YaRN."""
    key = f"{arch}.rope.scaling.yarn_ext_factor"
    if not metadata.has(key) or metadata.data[key] == -1:
        return
    usual = 1 if metadata.data.get(f"{arch}.rope.scaling.type") == "yarn" else 0
    if metadata.data[key] != usual:
        raise _refusal(metadata, key, (usual,))


def _refusal(metadata: ConfigReader, key: str, values: tuple[Any, ...]) -> UnsupportedError:
    shown = repr(metadata.data[key])
    return UnsupportedError(
        f"{metadata.where}: {key} = {shown[:80]} is not supported",
        f"supported: {', '.join(repr(value) for value in values if value not in ('', []))}, "
        "or the key absent",
    )
