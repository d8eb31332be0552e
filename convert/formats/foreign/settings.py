"""How a folder's weights are quantized: by a scheme of dsconv's own, by another tool, or not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dsconv.convert.checkpoint.check import holds_plain_floats
from dsconv.convert.checkpoint.checkpoint import CONFIG, Checkpoint
from dsconv.convert.checkpoint.quantization_config import (
    METHOD,
    OWN_METHOD,
    QuantizationConfig,
    read_quantization_config,
)
from dsconv.convert.checkpoint.tensors import SafetensorsSource
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import DsconvError

from .recognise import CONFIG_KEY, MLX_KEY, recognise
from .source import dequantizing

# Of compressed-tensors, and more than dsconv's schemes hold: groups of reordered columns, zero
# points that are not packed, scales that float16 would round.
NOT_OURS = ("transform_config", "sparsity_config")
CACHE_KEYS = ("kv_cache_scheme", "kv_cache_quant_algo")
GROUP_INDEX, ZERO_POINT, SCALE = "weight_g_idx", "weight_zero_point", "weight_scale"


def with_quantization(checkpoint: Checkpoint) -> Checkpoint:
    """Quantized by one of dsconv's own schemes: it stays so. By another tool: its source gives
    floats, and its config does not speak of it any more.

    Raises:
        InputError, UnsupportedError: with file, key or tensor, and the cure.
    """
    reader = ConfigReader(checkpoint.config, str(checkpoint.origin / CONFIG))
    child = reader.child(CONFIG_KEY)
    is_said = child is not None or reader.has(MLX_KEY)
    if is_said and holds_plain_floats(checkpoint):
        method = child.data.get("quant_method", "unknown") if child is not None else "MLX"
        return _without_settings(
            checkpoint,
            f"config.json says quantized ({method}), but all weights are plain numbers: "
            "read as such",
        )
    source = checkpoint.source
    if not isinstance(source, SafetensorsSource):
        return checkpoint
    if child is not None and any(child.has(key) for key in CACHE_KEYS):
        words = "its settings round the cache of keys and values, which dsconv keeps its own way"
        notes = (*checkpoint.notes, f"{checkpoint.origin}: {words}")
        checkpoint = replace(checkpoint, notes=notes)
    own = _own(child) if child is not None else None
    if own is not None and _is_exact(own, source):
        return replace(checkpoint, quantization=own)
    rules = recognise(checkpoint.origin, reader.data, reader.where)
    if rules is None:
        return checkpoint
    found = dequantizing(checkpoint.origin, source, checkpoint.decoder, rules)
    if found is None:  # what is missing or too much is told by whoever checks all tensors
        return checkpoint
    first = f"quantized with {rules.name}, read as the numbers that its weights stand for"
    return _without_settings(replace(checkpoint, source=found), first, *rules.notes)


def _without_settings(checkpoint: Checkpoint, *notes: str) -> Checkpoint:
    config: dict[str, Any] = {
        key: value for key, value in checkpoint.config.items() if key not in (CONFIG_KEY, MLX_KEY)
    }
    said = tuple(f"{checkpoint.origin}: {note}" for note in notes)
    return replace(checkpoint, config=config, notes=(*checkpoint.notes, *said))


def _own(child: ConfigReader) -> QuantizationConfig | None:
    """Of a checkpoint that one of dsconv's schemes holds.

    Raises:
        InputError, UnsupportedError: dsconv itself wrote it, and cannot read it.
    """
    method = child.data.get("quant_method")
    if method == OWN_METHOD:
        return read_quantization_config(child)
    if method != METHOD or any(child.data.get(key) for key in NOT_OURS):
        return None
    try:
        return read_quantization_config(child)
    except DsconvError:
        return None


def _is_exact(own: QuantizationConfig, source: SafetensorsSource) -> bool:
    for name, info in source.infos.items():
        module, _, kind = name.rpartition(".")
        if kind == GROUP_INDEX or (kind == ZERO_POINT and info.dtype != "I32"):
            return False
        if kind == SCALE and info.dtype in ("F32", "F64"):
            scheme = own.scheme_for(module, "Linear")
            if scheme is not None and not scheme.rounds_inputs:
                return False
    return True
