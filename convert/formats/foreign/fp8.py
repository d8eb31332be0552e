"""FP8 weights: DeepSeek's blocks and vLLM's scales (`fp8`), FBGEMM, ModelOpt, Quark.

What all of them do as they run, and dsconv does not: they round the inputs of matrices to FP8 too.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from dsconv.convert.families.inventory import Role
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError
from dsconv.quant.schemes import Floats

from .config_keys import FROM_THE_ORIGINAL, is_listed, key_names, names, refuse_others, unknown_keys
from .four_bit_floats import NvFp4Layout
from .layout import Layout, Rules, StoredMatrix, Wanted
from .scaled import FP8, ROWS, WHOLE_TENSOR, Granularity, ScaledLayout

ACTIVATION_SCALES = frozenset(
    {"input_scale", "input_scale_ub", "activation_scale", "output_scale", "k_scale", "v_scale"}
)
FORMATS = {"e4m3": ("F8_E4M3",), "float8_e4m3fn": ("F8_E4M3",), "e5m2": ("F8_E5M2",)}
KNOWN = key_names(
    """
    quant_method activation_scheme weight_block_size fmt ignored_layers modules_to_not_convert
    scale_fmt kv_cache_scheme kv_cache_quant_algo activation_scale_ub weight_per_tensor
    act_per_tensor is_checkpoint_fp8_serialized dequantize
    """
)
MODELOPT_KNOWN = key_names(
    """
    quant_method quant_algo kv_cache_quant_algo kv_cache_scheme group_size ignore
    exclude_modules config_groups producer quantization provider quantized_layers
    """
)
QUARK_KNOWN = key_names(
    """
    quant_method global_quant_config exclude algo_config softmax_quant_spec quant_mode export
    layer_type_quant_config layer_quant_config kv_cache_quant_config kv_cache_post_rope
    quark_version kv_cache_group version
    """
)


@dataclass(frozen=True)
class AnyScale(Layout):
    """The shape of the scale, and its name, say what shares it."""

    maker: str
    numbers: tuple[str, ...]
    block: Granularity | None

    @property
    def description(self) -> str:
        return f"{self.maker} fp8"

    def settled(self, stored: StoredMatrix, rows: int, columns: int) -> Layout:
        kind = "weight_scale_inv" if stored.has("weight_scale_inv") else "weight_scale"
        granularities = (self.block,) if self.block else (WHOLE_TENSOR, ROWS)
        shape = stored.shape(kind) if stored.has(kind) else ()
        fitting = (g for g in granularities if shape in g.shapes(rows, columns))
        return ScaledLayout(self.maker, self.numbers, next(fitting, granularities[0]), kind)

    def wanted(self, rows: int, columns: int) -> list[Wanted]:
        raise RuntimeError("settled first")

    def read(self, stored: StoredMatrix, columns: int, start: int, stop: int) -> Floats:
        raise RuntimeError("settled first")


@dataclass(frozen=True)
class OneLayoutRules(Rules):
    """The same layout for all modules but those that a list names."""

    title: str
    stored_as: Layout
    not_converted: tuple[str, ...]
    unknown: tuple[str, ...] = ()

    markers = frozenset({"weight_scale", "weight_scale_inv", "weight_scale_2"})
    beside = ACTIVATION_SCALES

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.title

    @property
    def notes(self) -> tuple[str, ...]:
        return (
            f"the software for {self.title} rounds the inputs of its matrices as it runs; "
            "here they stay float",
            *self.unknown,
        )

    def layout(self, module: str, role: Role, kinds: Collection[str]) -> Layout | None:
        return None if is_listed(module, self.not_converted) else self.stored_as


def read_fp8(reader: ConfigReader) -> OneLayoutRules:
    """quant_method `fp8` or `fbgemm_fp8`.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    form = reader.string("fmt", "e4m3")
    if form not in FORMATS:
        raise UnsupportedError(
            f"{reader.where}: fmt {form!r} is not supported",
            f"supported: {', '.join(FORMATS)}; or {FROM_THE_ORIGINAL}",
        )
    numbers = FORMATS[form] if reader.has("fmt") else FP8
    listed = names(reader, "ignored_layers", "modules_to_not_convert")
    layout = AnyScale("fp8", numbers, _block(reader))
    return OneLayoutRules("FP8", layout, listed, unknown_keys(reader, KNOWN))


def _block(reader: ConfigReader) -> Granularity | None:
    block = reader.data.get("weight_block_size")
    if block is None:
        return None
    is_pair = isinstance(block, list) and len(block) == 2
    if not is_pair or not all(type(size) is int and 0 < size < 2**31 for size in block):
        raise reader.fail("weight_block_size", f"{block!r} is not a pair of sizes")
    return Granularity(block[0], block[1])


def read_modelopt(reader: ConfigReader) -> OneLayoutRules:
    """quant_method `modelopt`, or hf_quant_config.json with its settings under `quantization`.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    inner = reader.child("quantization") or reader
    algorithm = inner.string("quant_algo")
    listed = names(inner, "ignore", "exclude_modules")
    layouts: dict[str, Layout] = {
        "FP8": AnyScale("modelopt", FP8, None),
        "FP8_PER_CHANNEL_PER_TOKEN": AnyScale("modelopt", FP8, None),
        "NVFP4": NvFp4Layout("modelopt", "weight", "weight_scale_2", divides=False),
    }
    if algorithm not in layouts:
        raise UnsupportedError(
            f"{inner.where}: quant_algo {algorithm!r} of ModelOpt is not supported",
            f"supported: {', '.join(layouts)}; or {FROM_THE_ORIGINAL}",
        )
    # `lm_head*` is a pattern there; only its beginning is compared.
    plain = tuple(entry.rstrip("*").rstrip(".") for entry in listed)
    title = f"ModelOpt {algorithm}"
    notes = unknown_keys(inner, MODELOPT_KNOWN)
    return OneLayoutRules(title, layouts[algorithm], tuple(filter(None, plain)), notes)


def read_quark(reader: ConfigReader) -> OneLayoutRules:
    """FP8 of AMD's Quark, one scale per matrix or row.

    Raises:
        InputError, UnsupportedError: with the key and the cure.
    """
    settings = reader.child("global_quant_config")
    weight = settings.child("weight") if settings else None
    if weight is None:
        raise reader.fail("global_quant_config", "no weight in it")
    if isinstance(weight.data.get("dtype"), str) is False:
        raise weight.fail("dtype", "missing, or more than one")
    refuse_others(weight, {"dtype": ("fp8_e4m3",), "qscheme": ("per_tensor", "per_channel")})
    refuse_others(reader, {"layer_type_quant_config": ({},), "layer_quant_config": ({},)})
    export: dict[str, tuple[Any, ...]] = {"weight_format": ("real_quantized",)}
    refuse_others(reader.child("export") or ConfigReader({}, reader.where), export)
    layout = AnyScale("quark", ("F8_E4M3",), None)
    listed = names(reader, "exclude")
    return OneLayoutRules("Quark FP8", layout, listed, unknown_keys(reader, QUARK_KNOWN))
