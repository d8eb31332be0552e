"""The `quantization_config` of the compressed-tensors convention, format `pack-quantized`.

A quantized module `M` is stored as `M.weight_packed` (int32 [out, ceil(in * bits / 32)]),
`M.weight_scale` (float16 [out, groups]), `M.weight_shape` (int64 [2]) and, when asymmetric,
`M.weight_zero_point` (int32, packed down the rows).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import InputError, UnsupportedError, UsageError
from ..quant.scheme import WHOLE_ROW, Scheme
from .json_file import ConfigReader

FORMAT = "pack-quantized"


@dataclass(frozen=True)
class Target:
    """One config group: which modules (names, `re:` patterns or class names) have which scheme."""

    names: tuple[str, ...]
    scheme: Scheme


@dataclass(frozen=True)
class QuantizationConfig:
    targets: tuple[Target, ...]
    ignore: tuple[str, ...]

    def scheme_for(self, module: str, kind: str) -> Scheme | None:
        """The scheme of a module; `kind` is its torch class, Linear or Embedding.

        A name beats a pattern, a pattern beats a class, as in compressed-tensors.
        """
        if any(_matches(name, module, kind) for name in self.ignore):
            return None
        found = [
            (rank, target.scheme)
            for target in self.targets
            for name in target.names
            if (rank := _matches(name, module, kind))
        ]
        return min(found, key=lambda item: item[0])[1] if found else None


def _matches(target: str, module: str, kind: str) -> int:
    """0 for no match, else its rank: 1 by name, 2 by pattern, 3 by class."""
    if target == module:
        return 1
    if target.startswith("re:"):
        return 2 if re.match(target[3:], module) else 0
    return 3 if target == kind else 0


def read_quantization_config(reader: ConfigReader) -> QuantizationConfig:
    """Parse `quantization_config`.

    Raises:
        InputError: malformed.
        UnsupportedError: another method, format or kind of number.
    """
    method = reader.string("quant_method")
    if method != "compressed-tensors":
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
        if form != FORMAT:
            raise UnsupportedError(
                f"{group.where}: format {form!r} is not supported", f"supported: {FORMAT}"
            )
        targets.append(Target(_strings(group, "targets"), _read_scheme(group)))
    return QuantizationConfig(tuple(targets), _strings(reader, "ignore"))


def _strings(reader: ConfigReader, key: str) -> tuple[str, ...]:
    value = reader.data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise reader.fail(key, "not a list of strings")
    for item in value:
        if item.startswith("re:"):
            try:
                re.compile(item[3:])
            except re.error as error:
                raise reader.fail(key, f"{item!r} is not a pattern: {error}") from error
    return tuple(value)


def _read_scheme(group: ConfigReader) -> Scheme:
    if group.has("input_activations") or group.has("output_activations"):
        raise UnsupportedError(
            f"{group.where}: quantized activations are not supported", "supported: weights only"
        )
    weights = group.child("weights")
    if weights is None:
        raise group.fail("weights", "missing")
    kind, strategy = weights.string("type", "int"), weights.string("strategy", "group")
    actorder = weights.data.get("actorder")
    if kind != "int" or strategy not in ("group", "channel") or actorder not in (None, "static"):
        raise UnsupportedError(
            f"{weights.where}: type {kind}, strategy {strategy}, actorder {actorder}",
            "supported: type int, strategy group or channel, no actorder",
        )
    size = weights.integer("group_size") if strategy == "group" else WHOLE_ROW
    bits, symmetric = weights.integer("num_bits"), weights.boolean("symmetric", True)
    try:
        return Scheme(bits, size, symmetric)
    except UsageError as error:
        raise InputError(f"{weights.where}: {error}", "supported: 4 or 8 bits") from error


def build_quantization_config(
    schemes: Mapping[str, Scheme | None], embeddings: Iterable[str]
) -> dict[str, Any]:
    """The JSON for modules with these schemes (None: kept in float).

    With one scheme the targets are class names, the widest understood form. With several, patterns
    name the modules, never overlapping. `dequantize` tells transformers to unpack while loading:
    without it, it can read neither a quantized embedding nor packed zero points.
    """
    quantized = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    embedding_names = set(embeddings)
    by_scheme: dict[Scheme, list[str]] = {}
    for name, quantized_as in quantized.items():
        by_scheme.setdefault(quantized_as, []).append(name)
    quantized_embedding = bool(embedding_names & set(quantized))
    if len(by_scheme) == 1:
        targets = [["Linear", "Embedding"] if quantized_embedding else ["Linear"]]
    else:
        patterns = {name: _pattern(name) for name in schemes}
        users: dict[str, set[Scheme | None]] = {}
        for name, scheme in schemes.items():
            users.setdefault(patterns[name], set()).add(scheme)
        targets = [
            sorted({patterns[n] if len(users[patterns[n]]) == 1 else _exactly(n) for n in names})
            for names in by_scheme.values()
        ]
    config: dict[str, Any] = {
        "quant_method": "compressed-tensors",
        "format": FORMAT,
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
    if quantized_embedding or any(not scheme.symmetric for scheme in quantized.values()):
        config["dequantize"] = True
    return config


def _pattern(name: str) -> str:
    """One pattern for the same module in every layer."""
    return "re:^" + re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) + "$"


def _exactly(name: str) -> str:
    return "re:^" + re.escape(name) + "$"


def _group(targets: list[str], scheme: Scheme) -> dict[str, Any]:
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
            "block_structure": None,
            "observer": None,
            "observer_kwargs": {},
        },
    }
