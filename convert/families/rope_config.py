"""Where rotary settings stand in config.json, and what they mean.

Three ways are in the field: `rope_theta` beside `rope_scaling`; one object `rope_parameters` that
holds both; and that object once for every type of layer. Writers mix them. Each setting is used as
transformers 5 uses it; where two of them contradict each other, readers differ: that is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from dsconv.convert.files.json_file import ConfigReader
from dsconv.convert.files.known_key import is_neutral
from dsconv.errors import InputError, UnsupportedError

from .rope import DynamicScaling, LinearScaling, Llama3Scaling, Rope, YarnScaling

BLOCKS = ("rope_scaling", "rope_parameters")
DEFAULT_THETA = 10000.0
ORIGINAL = "original_max_position_embeddings"
LAYER_TYPE = "full_attention"  # of every layer that is computed here (`config_keys` sees to it)
OTHER_LAYER_TYPES = ("sliding_attention", "chunked_attention", "linear_attention")
# Of every kind, with the values that change nothing.
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "partial_rotary_factor": (1, 1.0),
    "extrapolation_factor": (1, 1.0),
    "factor": (1, 1.0),
    "attention_factor": (1, 1.0),
    "mscale": (0, 1, 1.0),
    "mscale_all_dim": (0,),
    "truncate": (True,),
}
# Not read by any formula of these kinds.
WITHOUT_EFFECT = frozenset({"finetuned", ORIGINAL})
NAMED = "attn_factor"  # what it changes depends on the reader: see `rope_remark`


@dataclass(frozen=True)
class _Context:
    """What a formula may need from outside its block."""

    theta: float
    head_dim: int
    positions: int


def _plain(block: ConfigReader, context: _Context) -> Rope:
    return Rope(context.theta, context.head_dim)


def _dynamic(block: ConfigReader, context: _Context) -> Rope:
    scaling = DynamicScaling(block.number("factor", low=1e-6), context.positions)
    return Rope(context.theta, context.head_dim, scaling)


def _linear(block: ConfigReader, context: _Context) -> Rope:
    scaling = LinearScaling(block.number("factor", low=1e-6))
    return Rope(context.theta, context.head_dim, scaling)


def _llama3(block: ConfigReader, context: _Context) -> Rope:
    low = block.number("low_freq_factor", low=1e-6)
    high = block.number("high_freq_factor")
    if high <= low:
        raise block.fail("high_freq_factor", f"{high:g} is not above low_freq_factor {low:g}")
    original = block.integer(ORIGINAL, context.positions)
    scaling = Llama3Scaling(block.number("factor", low=1e-6), low, high, original)
    return Rope(context.theta, context.head_dim, scaling)


def _yarn(block: ConfigReader, context: _Context) -> Rope:
    original = block.integer(ORIGINAL, context.positions)
    # A factor of null is the ratio of the lengths; a missing one is an error of transformers too.
    ratio = context.positions / original if "factor" in block.data else None
    factor = block.number("factor", ratio, low=1e-6)
    scaling = YarnScaling(
        factor,
        _yarn_attention_factor(block, factor),
        block.number("beta_fast", 32.0) or 32.0,  # 0 stands for the default, as in transformers
        block.number("beta_slow", 1.0) or 1.0,
        block.boolean("truncate", "truncate" not in block.data),
        original,
    )
    return Rope(context.theta, context.head_dim, scaling)


def _yarn_attention_factor(block: ConfigReader, factor: float) -> float:
    """Paper's default 0.1 ln(factor) + 1, unless the config overrides it."""

    def mscale(weight: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * weight * math.log(factor) + 1.0

    if block.has("attention_factor"):
        return block.number("attention_factor")
    if block.number("mscale", 0.0) and block.number("mscale_all_dim", 0.0):
        return mscale(block.number("mscale")) / mscale(block.number("mscale_all_dim"))
    return mscale(1.0)


@dataclass(frozen=True)
class _Kind:
    """Which keys a formula reads; any other is refused unless its value changes nothing."""

    read: Callable[[ConfigReader, _Context], Rope]
    keys: frozenset[str]


KINDS: Mapping[str, _Kind] = {
    "default": _Kind(_plain, frozenset()),
    "linear": _Kind(_linear, frozenset({"factor"})),
    "dynamic": _Kind(_dynamic, frozenset({"factor"})),
    "llama3": _Kind(
        _llama3, frozenset({"factor", "low_freq_factor", "high_freq_factor", ORIGINAL})
    ),
    "yarn": _Kind(
        _yarn,
        frozenset({"factor", "attention_factor", "mscale", "mscale_all_dim", "truncate", ORIGINAL})
        | {"beta_fast", "beta_slow", NAMED},
    ),
}
ALWAYS = frozenset({"rope_type", "type", "rope_theta"})


def read_rope(config: ConfigReader, head_dim: int, max_position_embeddings: int) -> Rope:
    """The rotary positions that config.json asks for, wherever it says so.

    Raises:
        InputError: a value is missing or wrong, or two places contradict each other.
        UnsupportedError: a scaling or a setting that is not implemented.
    """
    blocks = _flat_blocks(config)
    ropes = [_read_block(config, block, head_dim, max_position_embeddings) for block in blocks]
    if not ropes:
        theta = config.number("rope_theta", DEFAULT_THETA, low=1.0 + 1e-6)
        return Rope(theta, head_dim)
    if ropes[0] != ropes[-1]:
        raise InputError(
            f"{config.where}: rope_scaling and rope_parameters contradict each other: "
            f"{_words(ropes[0])}, and {_words(ropes[-1])}",
            "readers take one or the other; keep the one that the model was trained with",
        )
    return ropes[0]


def with_portable_rope(config: Mapping[str, Any], where: str) -> dict[str, Any]:
    """config.json in which every reader finds the same rotary settings: those before transformers 5
    look for `rope_theta` and `rope_scaling` at the top level, the newer ones take both from there.

    A config that says it so already is returned as it is. Call it after `read_rope`, which refuses.
    """
    reader = ConfigReader(config, where)
    blocks = _flat_blocks(reader)
    top = reader.has(ORIGINAL)
    if not blocks or (
        not top
        and not reader.has("rope_parameters")
        and "rope_theta" not in blocks[0].data
        and not _is_nested(reader.data["rope_scaling"])
    ):
        return dict(config)
    block = dict(blocks[0].data)
    block["rope_type"] = _kind_of(blocks[0])
    theta = _theta_of(reader, blocks[0])
    settings = {key: value for key, value in block.items() if key != "rope_theta"}
    if top and ORIGINAL in KINDS[block["rope_type"]].keys:
        settings[ORIGINAL] = reader.integer(ORIGINAL)
    changed = {**config, "rope_theta": theta}
    changed["rope_scaling"] = None if block["rope_type"] == "default" else settings
    if reader.has("rope_parameters"):
        changed["rope_parameters"] = {**settings, "rope_theta": theta}
    return changed


def rope_remark(config: ConfigReader) -> str | None:
    """What readers of config.json disagree about, for a person to decide; None for nothing."""
    for block in _flat_blocks(config):
        if block.has(NAMED) and _kind_of(block) == "yarn":
            given = block.number(NAMED)
            factor = _yarn_attention_factor(block, block.number("factor", 1.0))
            return (
                f"{block.where}: {NAMED} = {given:g} is not applied, as in transformers; vLLM "
                f"multiplies by it. For the same here set attention_factor to {given * factor:g}"
            )
    return None


def _is_nested(value: Any) -> bool:
    known = (LAYER_TYPE, *OTHER_LAYER_TYPES)
    return isinstance(value, dict) and any(key in known for key in value)


def _flat_blocks(config: ConfigReader) -> list[ConfigReader]:
    """The settings of the layers that exist, from each object that holds any."""
    found = []
    for key in BLOCKS:
        block = config.child(key)
        if block is None or not block.data:
            continue
        if _is_nested(block.data):
            block = _of_full_attention(block)
        found.append(block)
    return found


def _of_full_attention(nested: ConfigReader) -> ConfigReader:
    beside = [
        key
        for key in nested.data
        if key not in (LAYER_TYPE, *OTHER_LAYER_TYPES) and nested.has(key)
    ]
    if beside:
        raise UnsupportedError(
            f"{nested.where}: {beside[0]} beside settings per layer type is not supported",
            f"write all rotary settings into {LAYER_TYPE!r}",
        )
    block = nested.child(LAYER_TYPE)
    if block is None:
        raise UnsupportedError(
            f"{nested.where}: no settings for {LAYER_TYPE!r}, the type of every layer",
            "layers without rotary positions are not supported",
        )
    return block


def _kind_of(block: ConfigReader) -> str:
    named = [block.string(key) for key in ("rope_type", "type") if block.has(key)]
    if len(set(named)) > 1:
        raise block.fail("rope_type", f"{named[0]!r} contradicts type {named[1]!r}")
    return named[0] if named else "default"


def _theta_of(config: ConfigReader, block: ConfigReader) -> float:
    low = 1.0 + 1e-6
    outer = config.number("rope_theta", DEFAULT_THETA, low=low)
    theta = block.number("rope_theta", outer, low=low)
    if config.has("rope_theta") and theta != outer:
        raise InputError(
            f"{config.where}: rope_theta = {outer:g}, but {block.where}: rope_theta = {theta:g}",
            "readers take one or the other; keep the one that the model was trained with",
        )
    return theta


def _read_block(config: ConfigReader, block: ConfigReader, head_dim: int, positions: int) -> Rope:
    name = _kind_of(block)
    if name not in KINDS:
        raise UnsupportedError(
            f"{block.where}: rope_type {name!r} is not supported",
            f"supported: {', '.join(KINDS)}",
        )
    kind = KINDS[name]
    _refuse_other_keys(block, name, kind.keys)
    context = _Context(_theta_of(config, block), head_dim, positions)
    if ORIGINAL in kind.keys and config.has(ORIGINAL):
        outer = config.integer(ORIGINAL)
        if block.integer(ORIGINAL, outer) != outer:
            raise InputError(
                f"{config.where}: {ORIGINAL} = {outer}, but {block.where} says "
                f"{block.data[ORIGINAL]}",
                "readers take one or the other; keep the one that the model was trained with",
            )
        block = ConfigReader({**block.data, ORIGINAL: outer}, block.where)
    return kind.read(block, context)


def _refuse_other_keys(block: ConfigReader, kind: str, used: frozenset[str]) -> None:
    for key in block.data:
        if key in used or key in ALWAYS or key in WITHOUT_EFFECT or not block.has(key):
            continue
        value = block.data[key]
        if not is_neutral(value, NEUTRAL.get(key, ())):
            raise UnsupportedError(
                f"{block.where}: {key} = {str(value)[:60]} is not supported for {kind!r}",
                f"supported: {', '.join(sorted(used)) or 'no further keys'}; "
                "remove the key if the model was trained without it",
            )


def _words(rope: Rope) -> str:
    scaling = rope.scaling
    kind = "no scaling" if scaling is None else f"{type(scaling).__name__}{vars(scaling)}"
    return f"theta {rope.theta:g} with {kind}"
