"""The `quantization_config` of the compressed-tensors convention, weights and activations.

Format `pack-quantized`: a quantized module `M` is stored as `M.weight_packed` (int32 [out,
ceil(in * bits / 32)]), `M.weight_scale` (float16 [out, groups]), `M.weight_shape` (int64 [2]) and,
when asymmetric, `M.weight_zero_point` (int32, packed down the rows).

Format `int-quantized`: `M.weight` (int8 [out, in]) and `M.weight_scale` (float32 [out, 1]); inputs
are rounded to int8 as they come, with one scale per token.

Scale and minimum (`quant/scale_min.py`) is no part of that convention: a checkpoint with such
modules has quant_method `dsconv`, which other readers refuse, and stores `M.weight_codes`,
`M.weight_scale_steps`, `M.weight_minimum_steps` (uint8, bits packed row by row) and
`M.weight_super_scale`, `M.weight_super_minimum` (float16).
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import InputError, UnsupportedError, UsageError
from dsconv.quant.int8_rows import Int8Rows
from dsconv.quant.integer import WHOLE_ROW, IntegerScheme
from dsconv.quant.rounding import AnyScheme
from dsconv.quant.scale_min import ScaleMin

from .module_patterns import ModulePatterns, read_patterns

FORMAT, ROWS_FORMAT, MIXED_FORMAT = "pack-quantized", "int-quantized", "mixed-precision"
METHOD, OWN_METHOD = "compressed-tensors", "dsconv"
SCALE_MIN = "scale-min"
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "group_size": None, "actorder": None}
WEIGHT_ROWS = {**INT8, "strategy": "channel", "dynamic": False}
ACTIVATION_ROWS = {**INT8, "strategy": "token", "dynamic": True}


@dataclass(frozen=True)
class Target:
    """One config group: which modules (names, `re:` patterns or class names) have which scheme."""

    modules: ModulePatterns
    scheme: AnyScheme


@dataclass(frozen=True)
class QuantizationConfig:
    targets: tuple[Target, ...]
    ignore: ModulePatterns

    def scheme_for(self, module: str, kind: str) -> AnyScheme | None:
        """The scheme of a module; `kind` is its torch class, Linear or Embedding.

        A name beats a pattern, a pattern beats a class, as in compressed-tensors.
        """
        if self.ignore.rank(module, kind):
            return None
        found = [
            (rank, target.scheme)
            for target in self.targets
            if (rank := target.modules.rank(module, kind))
        ]
        return min(found, key=lambda item: item[0])[1] if found else None


def read_quantization_config(reader: ConfigReader) -> QuantizationConfig:
    """Parse `quantization_config`.

    Raises:
        InputError: malformed.
        UnsupportedError: another method, format or kind of number.
    """
    method = reader.string("quant_method")
    if method not in (METHOD, OWN_METHOD):
        raise UnsupportedError(
            f"{reader.where}: quant_method {method!r} is not supported",
            "start from the unquantized checkpoint",
        )
    groups = reader.child("config_groups")
    if groups is None:
        raise reader.fail("config_groups", "missing")
    targets = []
    for key in groups.data:
        group = groups.child(key)
        if group is None:
            raise groups.fail(key, "missing")
        form = group.string("format", reader.string("format", FORMAT))
        if form not in (FORMAT, ROWS_FORMAT):
            raise UnsupportedError(
                f"{group.where}: format {form!r} is not supported",
                f"supported: {FORMAT}, {ROWS_FORMAT}",
            )
        scheme = _read_rows(group) if form == ROWS_FORMAT else _read_scheme(group)
        targets.append(Target(_modules(group, "targets"), scheme))
    patterns = sum(len(target.modules.patterns) for target in targets)
    if patterns > limits.PATTERNS:
        raise reader.fail("config_groups", f"{patterns} patterns, limit {limits.PATTERNS}")
    return QuantizationConfig(tuple(targets), _modules(reader, "ignore"))


def _modules(reader: ConfigReader, key: str) -> ModulePatterns:
    value = reader.data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise reader.fail(key, "not a list of strings")
    return read_patterns(value, f"{reader.where}: {key}")


def _read_rows(group: ConfigReader) -> Int8Rows:
    """Nothing but int8 weights per channel and dynamic int8 inputs per token."""
    wanted = {"weights": WEIGHT_ROWS, "input_activations": ACTIVATION_ROWS}
    for part, settings in wanted.items():
        found = group.child(part)
        if found is None:
            raise group.fail(part, "missing")
        for key, value in settings.items():
            if found.data.get(key) != value:
                raise UnsupportedError(
                    f"{found.where}: {key} {found.data.get(key)!r} in format {ROWS_FORMAT}",
                    f"supported: {value!r}",
                )
    if group.has("output_activations"):
        raise UnsupportedError(
            f"{group.where}: quantized outputs are not supported", "supported: inputs only"
        )
    return Int8Rows()


def _read_scheme(group: ConfigReader) -> AnyScheme:
    if group.has("input_activations") or group.has("output_activations"):
        raise UnsupportedError(
            f"{group.where}: quantized activations are not supported in format {FORMAT}",
            f"supported: format {ROWS_FORMAT}, or weights only",
        )
    weights = group.child("weights")
    if weights is None:
        raise group.fail("weights", "missing")
    kind, strategy = weights.string("type", "int"), weights.string("strategy", "group")
    if kind == SCALE_MIN:
        return _read_scale_min(weights)
    actorder = weights.data.get("actorder")
    if kind != "int" or strategy not in ("group", "channel") or actorder not in (None, "static"):
        raise UnsupportedError(
            f"{weights.where}: type {kind}, strategy {strategy}, actorder {actorder}",
            "supported: type int, strategy group or channel, no actorder",
        )
    size = weights.integer("group_size") if strategy == "group" else WHOLE_ROW
    bits, symmetric = weights.integer("num_bits"), weights.boolean("symmetric", True)
    try:
        return IntegerScheme(bits, size, symmetric)
    except UsageError as error:
        raise InputError(f"{weights.where}: {error}", "supported: 4 or 8 bits") from error


def _read_scale_min(weights: ConfigReader) -> ScaleMin:
    bits, size = weights.integer("num_bits"), weights.integer("group_size")
    if size != ScaleMin.group_size:
        raise UnsupportedError(
            f"{weights.where}: groups of {size} with scale and minimum",
            f"supported: {ScaleMin.group_size}",
        )
    try:
        return ScaleMin(bits)
    except UsageError as error:
        raise InputError(f"{weights.where}: {error}", "supported: 3 to 6 bits") from error


def build_quantization_config(
    schemes: Mapping[str, AnyScheme | None], embeddings: Iterable[str], head: str
) -> dict[str, Any]:
    """The JSON for modules with these schemes (None: kept in float).

    With one scheme the targets are class names, the widest understood form, and the head by name:
    vLLM's is no Linear. With several, patterns name the modules, never overlapping. `dequantize`
    tells transformers to unpack while loading: without it, it can read neither a quantized
    embedding nor packed zero points.
    """
    quantized = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    embedding_names = set(embeddings)
    by_scheme: dict[AnyScheme, list[str]] = {}
    for name, quantized_as in quantized.items():
        by_scheme.setdefault(quantized_as, []).append(name)
    quantized_embedding = bool(embedding_names & set(quantized))
    if len(by_scheme) == 1:
        targets = [["Linear", "Embedding"] if quantized_embedding else ["Linear"]]
        if head in quantized:  # first: compressed-tensors warns of targets that come too late
            targets[0].insert(0, _exactly(head))
    else:
        patterns = {name: _pattern(name) for name in schemes}
        users: dict[str, set[AnyScheme | None]] = {}
        for name, scheme in schemes.items():
            users.setdefault(patterns[name], set()).add(scheme)
        targets = [
            sorted({patterns[n] if len(users[patterns[n]]) == 1 else _exactly(n) for n in names})
            for names in by_scheme.values()
        ]
    own = any(isinstance(scheme, ScaleMin) for scheme in by_scheme)
    config: dict[str, Any] = {
        "quant_method": OWN_METHOD if own else METHOD,
        "format": _format_of(by_scheme),
        "quantization_status": "compressed",
        "global_compression_ratio": None,
        "kv_cache_scheme": None,
        "ignore": sorted(
            name for name, scheme in schemes.items() if not scheme and name not in embedding_names
        ),
        "config_groups": {
            f"group_{index}": _group(names, scheme)
            for index, (names, scheme) in enumerate(zip(targets, by_scheme, strict=True))
        },
    }
    asymmetric = any(isinstance(s, IntegerScheme) and not s.symmetric for s in by_scheme)
    if not own and (quantized_embedding or asymmetric):
        config["dequantize"] = True
    return config


def _format_of(schemes: Collection[AnyScheme]) -> str:
    rows = sum(isinstance(scheme, Int8Rows) for scheme in schemes)
    if not rows:
        return FORMAT
    return ROWS_FORMAT if rows == len(schemes) else MIXED_FORMAT


def _pattern(name: str) -> str:
    """One pattern for the same module in every layer."""
    return "re:^" + re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) + "$"


def _exactly(name: str) -> str:
    return "re:^" + re.escape(name) + "$"


def _group(targets: list[str], scheme: AnyScheme) -> dict[str, Any]:
    if isinstance(scheme, ScaleMin):
        weights = {"num_bits": scheme.bits, "type": SCALE_MIN, "group_size": scheme.group_size}
        return {"targets": targets, "weights": weights}
    unused: dict[str, Any] = {"block_structure": None, "observer": None, "observer_kwargs": {}}
    if isinstance(scheme, Int8Rows):
        return {
            "targets": targets,
            "format": ROWS_FORMAT,
            "input_activations": {**ACTIVATION_ROWS, **unused},
            "output_activations": None,
            "weights": {**WEIGHT_ROWS, **unused},
        }
    whole_row = scheme.group_size == WHOLE_ROW
    return {
        "targets": targets,
        "format": FORMAT,
        "input_activations": None,
        "output_activations": None,
        "weights": {
            "num_bits": scheme.bits,
            "type": "int",
            "symmetric": scheme.symmetric,
            "strategy": "channel" if whole_row else "group",
            "group_size": None if whole_row else scheme.group_size,
            "dynamic": False,
            "actorder": None,
            **unused,
        },
    }
