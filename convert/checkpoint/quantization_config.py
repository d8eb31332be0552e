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
from dsconv.errors import UnsupportedError
from dsconv.quant.schemes import Scheme

from .matrix_layout import FORMAT, ROWS_FORMAT, read_scheme, storage_of
from .module_patterns import ModulePatterns, read_patterns

MIXED_FORMAT = "mixed-precision"
METHOD, OWN_METHOD = "compressed-tensors", "dsconv"


@dataclass(frozen=True)
class ConfigGroup:
    """One config group: which modules (names, `re:` patterns or class names) have which scheme."""

    modules: ModulePatterns
    scheme: Scheme


@dataclass(frozen=True)
class QuantizationConfig:
    groups: tuple[ConfigGroup, ...]
    ignore: ModulePatterns

    def scheme_for(self, module: str, kind: str) -> Scheme | None:
        """The scheme of a module; `kind` is its torch class, Linear or Embedding.

        A name beats a pattern, a pattern beats a class, as in compressed-tensors.
        """
        if self.ignore.rank(module, kind):
            return None
        found = [
            (rank, group.scheme)
            for group in self.groups
            if (rank := group.modules.rank(module, kind))
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
        scheme = read_scheme(group, form)
        targets.append(ConfigGroup(_modules(group, "targets"), scheme))
    patterns = sum(len(target.modules.patterns) for target in targets)
    if patterns > limits.PATTERNS:
        raise reader.fail("config_groups", f"{patterns} patterns, limit {limits.PATTERNS}")
    return QuantizationConfig(tuple(targets), _modules(reader, "ignore"))


def _modules(reader: ConfigReader, key: str) -> ModulePatterns:
    value = reader.data.get(key) or []
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise reader.fail(key, "not a list of strings")
    return read_patterns(value, f"{reader.where}: {key}")


def build_quantization_config(
    schemes: Mapping[str, Scheme | None], embeddings: Iterable[str], head: str
) -> dict[str, Any]:
    """The JSON for modules with these schemes (None: kept in float).

    With one scheme the targets are class names, the widest understood form, and the head by name:
    vLLM's is no Linear. With several, patterns name the modules, never overlapping. `dequantize`
    tells transformers to unpack while loading: without it, it can read neither a quantized
    embedding nor packed zero points.
    """
    quantized = {name: scheme for name, scheme in schemes.items() if scheme is not None}
    embedding_names = set(embeddings)
    by_scheme: dict[Scheme, list[str]] = {}
    for name, quantized_as in quantized.items():
        by_scheme.setdefault(quantized_as, []).append(name)
    quantized_embedding = bool(embedding_names & set(quantized))
    if len(by_scheme) == 1:
        targets = [["Linear", "Embedding"] if quantized_embedding else ["Linear"]]
        if head in quantized:  # first: compressed-tensors warns of targets that come too late
            targets[0].insert(0, _exactly(head))
    else:
        patterns = {name: _pattern(name) for name in schemes}
        users: dict[str, set[Scheme | None]] = {}
        for name, scheme in schemes.items():
            users.setdefault(patterns[name], set()).add(scheme)
        targets = [
            sorted({patterns[n] if len(users[patterns[n]]) == 1 else _exactly(n) for n in names})
            for names in by_scheme.values()
        ]
    own = any(storage_of(scheme).is_own for scheme in by_scheme)
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
            f"group_{index}": {"targets": names, **storage_of(scheme).group(scheme)}
            for index, (names, scheme) in enumerate(zip(targets, by_scheme, strict=True))
        },
    }
    asymmetric = any(scheme.has_zero_points for scheme in by_scheme)
    if not own and (quantized_embedding or asymmetric):
        config["dequantize"] = True
    return config


def _format_of(schemes: Collection[Scheme]) -> str:
    formats = {storage_of(scheme).format for scheme in schemes}
    return MIXED_FORMAT if len(formats) > 1 else next(iter(formats), FORMAT)


def _pattern(name: str) -> str:
    """One pattern for the same module in every layer."""
    return "re:^" + re.sub(r"\\\.\d+\\\.", r"\\.\\d+\\.", re.escape(name)) + "$"


def _exactly(name: str) -> str:
    return "re:^" + re.escape(name) + "$"
