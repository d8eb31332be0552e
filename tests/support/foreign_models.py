"""Checkpoints as other tools write them, packed here by slow textbook code, with what they mean.

Each packer takes a matrix [out, in] of float32 and gives the tensors of a module and the float64
matrix that they stand for, computed from the codes and scales themselves, never from the packed
bytes. Nothing of the readers is used.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from small_models import random_tensors, small_config, write_side_files

Array = NDArray[Any]
Tensors = dict[str, Array]
Packed = tuple[Tensors, Array]
Packer = Callable[[Array], Packed]

AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
NF4 = (
    *(-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635),
    *(-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725),
    *(0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941),
    *(0.7229568362236023, 1.0),
)
E4M3, E8M0 = np.dtype(ml_dtypes.float8_e4m3fn), np.dtype(ml_dtypes.float8_e8m0fnu)


def bits_to_words(codes: Array, bits: int, width: int = 32) -> Array:
    """One row of codes -> words, lowest bits first, one bit at a time."""
    stream = [(int(code) >> bit) & 1 for code in codes for bit in range(bits)]
    stream += [0] * (-len(stream) % width)
    words = []
    for start in range(0, len(stream), width):
        words.append(sum(bit << place for place, bit in enumerate(stream[start : start + width])))
    return np.array(words, np.uint64).astype(np.dtype(f"u{width // 8}"))


def rows_to_words(codes: Array, bits: int, width: int = 32) -> Array:
    words = np.stack([bits_to_words(row, bits, width) for row in codes])
    return words.view(np.dtype(f"i{width // 8}"))


def grouped(matrix: Array, group: int) -> list[Array]:
    """Column groups; -1 is one for the whole row."""
    size = matrix.shape[1] if group == -1 else group
    return [matrix[:, start : start + size] for start in range(0, matrix.shape[1], size)]


def integer_grid(
    matrix: Array, bits: int, group: int, symmetric: bool, dtype: Any = np.float16
) -> tuple[Array, Array, Array]:
    """-> codes [out, in], scales [out, groups], zero points [out, groups]."""
    top = (1 << bits) - 1
    codes, scales, zeros = [], [], []
    for part in grouped(matrix, group):
        low, high = np.minimum(part.min(1), 0), np.maximum(part.max(1), 0)
        if symmetric:
            high = np.maximum(np.abs(low), high)
            low = -high
        scale = np.maximum((high - low) / top, 1e-4).astype(dtype)
        middle = np.full(len(part), 1 << (bits - 1))
        zero = middle if symmetric else np.clip(np.rint(-low / scale.astype(np.float64)), 0, top)
        code = np.rint(part / scale.astype(np.float64)[:, None]) + zero[:, None]
        codes.append(np.clip(code, 0, top).astype(np.int64))
        scales.append(scale)
        zeros.append(zero.astype(np.int64))
    return np.concatenate(codes, 1), np.stack(scales, 1), np.stack(zeros, 1)


def integer_values(codes: Array, scales: Array, zeros: Array, group_of: Array) -> Array:
    """What they stand for, weight by weight."""
    scale, zero = scales.astype(np.float64), zeros.astype(np.float64)
    return np.array((codes - zero[:, group_of]) * scale[:, group_of])


def groups_of(columns: int, group: int) -> Array:
    return np.arange(columns) // (columns if group == -1 else group)


@dataclass(frozen=True)
class Gptq:
    bits: int = 4
    group: int = 32
    symmetric: bool = True
    v2: bool = False
    ordered: bool = False
    width: int = 32

    def __call__(self, matrix: Array) -> Packed:
        columns = matrix.shape[1]
        group_of = groups_of(columns, self.group)
        order = np.random.default_rng(columns).permutation(columns)
        if self.ordered:  # the groups are of columns that lie anywhere
            sorted_codes, scales, zeros = integer_grid(
                matrix[:, order], self.bits, self.group, self.symmetric
            )
            codes, index = np.empty_like(sorted_codes), np.empty(columns, np.int64)
            codes[:, order], index[order] = sorted_codes, group_of
            group_of = index
        else:
            codes, scales, zeros = integer_grid(matrix, self.bits, self.group, self.symmetric)
        stored = zeros if self.v2 else (zeros - 1) & ((1 << self.bits) - 1)
        tensors = {
            "qweight": np.ascontiguousarray(rows_to_words(codes, self.bits, self.width).T),
            "qzeros": rows_to_words(stored.T, self.bits, self.width),
            "scales": np.ascontiguousarray(scales.T),
            "g_idx": group_of.astype(np.int32),
        }
        return tensors, integer_values(codes, scales, zeros, group_of)

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "gptq",
            "bits": self.bits,
            "group_size": self.group,
            "sym": self.symmetric,
            "desc_act": self.ordered,
            "checkpoint_format": "gptq_v2" if self.v2 else "gptq",
            "pack_dtype": f"int{self.width}",
            "damp_percent": 0.01,
        }


@dataclass(frozen=True)
class Awq:
    group: int = 32
    gemv: bool = False

    def __call__(self, matrix: Array) -> Packed:
        codes, scales, zeros = integer_grid(matrix, 4, self.group, False)
        values = integer_values(codes, scales, zeros, groups_of(matrix.shape[1], self.group))
        if self.gemv:
            words = -(-scales.shape[1] // 8)
            multiple = {32: 4, 64: 2}.get(self.group, 1)
            width = -(-words // multiple) * multiple * 8
            padding = ((0, 0), (0, width - scales.shape[1]))
            return {
                "qweight": rows_to_words(codes, 4),
                "qzeros": rows_to_words(np.pad(zeros, padding), 4),
                "scales": np.pad(scales, padding),
            }, values
        return {
            "qweight": self._words(codes.T),
            "qzeros": self._words(zeros.T),
            "scales": np.ascontiguousarray(scales.T),
        }, values

    def _words(self, codes: Array) -> Array:
        """[in, out]: nibble i of a word is the output AWQ_ORDER[i] of its eight."""
        words = np.zeros((len(codes), codes.shape[1] // 8), np.uint64)
        for column in range(codes.shape[1] // 8):
            for nibble, output in enumerate(AWQ_ORDER):
                value = codes[:, 8 * column + output].astype(np.uint64)
                words[:, column] |= value << np.uint64(4 * nibble)
        return words.astype(np.uint32).view(np.int32)

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "awq",
            "bits": 4,
            "group_size": self.group,
            "zero_point": True,
            "version": "gemv" if self.gemv else "gemm",
            "modules_to_not_convert": None,
        }


@dataclass(frozen=True)
class BnbInt8:
    def __call__(self, matrix: Array) -> Packed:
        largest = np.abs(matrix).max(1).astype(np.float32)
        codes = np.rint(matrix / largest[:, None] * 127).astype(np.int8)
        tensors = {"weight": codes, "SCB": largest, "weight_format": np.array(0, np.uint8)}
        return tensors, codes.astype(np.float64) * largest.astype(np.float64)[:, None] / 127

    def config(self) -> dict[str, Any]:
        return {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}


@dataclass(frozen=True)
class BnbFourBits:
    kind: str = "nf4"
    nested: bool = False
    block: int = 64

    def __call__(self, matrix: Array) -> Packed:
        table = np.array(NF4 if self.kind == "nf4" else FP4, np.float32) / (
            1 if self.kind == "nf4" else 6
        )
        flat = matrix.reshape(-1)
        blocks = [flat[i : i + self.block] for i in range(0, flat.size, self.block)]
        absmax = np.array([np.abs(block).max() for block in blocks], np.float32)
        tensors: Tensors = {}
        state: dict[str, Any] = {
            "quant_type": self.kind,
            "blocksize": self.block,
            "dtype": "bfloat16",
            "shape": list(matrix.shape),
        }
        scales = absmax.astype(np.float64)
        if self.nested:
            offset = float(absmax.mean())
            nested_table = np.linspace(-1, 1, 256, dtype=np.float32)
            outer = [(absmax - offset)[i : i + 256] for i in range(0, absmax.size, 256)]
            nested = np.array([max(np.abs(part).max(), 1e-6) for part in outer], np.float32)
            codes8 = np.concatenate(
                [
                    np.abs(nested_table[None] - (part / top)[:, None]).argmin(1)
                    for part, top in zip(outer, nested, strict=True)
                ]
            ).astype(np.uint8)
            spread = np.repeat(nested, 256)[: absmax.size].astype(np.float64)
            scales = nested_table.astype(np.float64)[codes8] * spread + offset
            tensors |= {"weight.nested_absmax": nested, "weight.nested_quant_map": nested_table}
            state |= {"nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": offset}
        codes = np.concatenate(
            [
                np.abs(table[None] - (block / scale)[:, None]).argmin(1)
                for block, scale in zip(blocks, scales, strict=True)
            ]
        )
        per_weight = np.repeat(scales, self.block)[: flat.size]
        values = (table.astype(np.float64)[codes] * per_weight).reshape(matrix.shape)
        codes = np.append(codes, 0)[: codes.size + codes.size % 2]
        pairs = codes.reshape(-1, 2)
        text = json.dumps(state).encode()
        tensors |= {
            "weight": (pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8)[:, None],
            "weight.quant_map": table,
            "weight.absmax": codes8 if self.nested else absmax,
            f"weight.quant_state.bitsandbytes__{self.kind}": np.frombuffer(text, np.uint8),
        }
        return tensors, values

    def config(self) -> dict[str, Any]:
        return {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": self.kind,
            "bnb_4bit_use_double_quant": self.nested,
            "llm_int8_skip_modules": ["lm_head"],
        }


@dataclass(frozen=True)
class Fp8:
    """block: sizes, or (0, 0) for one scale, or (1, 0) for one a row."""

    block: tuple[int, int] = (16, 16)
    kind: str = "float8_e4m3fn"
    settings: Mapping[str, Any] | None = None

    def __call__(self, matrix: Array) -> Packed:
        dtype = np.dtype(getattr(ml_dtypes, self.kind))
        rows, columns = matrix.shape
        high, wide = self.block[0] or rows, self.block[1] or columns
        top = float(ml_dtypes.finfo(dtype).max)
        scales = np.empty((-(-rows // high), -(-columns // wide)), np.float32)
        codes, values = np.empty(matrix.shape, dtype), np.empty(matrix.shape)
        for i in range(len(scales)):
            for j in range(scales.shape[1]):
                place = (slice(i * high, (i + 1) * high), slice(j * wide, (j + 1) * wide))
                scales[i, j] = np.abs(matrix[place]).max() / top
                codes[place] = (matrix[place] / scales[i, j]).astype(dtype)
                values[place] = codes[place].astype(np.float64) * float(scales[i, j])
        name = "weight_scale_inv" if self.block[0] > 1 else "weight_scale"
        return {"weight": codes, name: scales if any(self.block) else scales[0, 0]}, values

    def config(self) -> dict[str, Any]:
        if self.settings is not None:
            return dict(self.settings)
        found: dict[str, Any] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
        return found | ({"weight_block_size": list(self.block)} if self.block[0] > 1 else {})


@dataclass(frozen=True)
class Mlx:
    bits: int = 4
    group: int = 32

    def __call__(self, matrix: Array) -> Packed:
        top = (1 << self.bits) - 1
        parts = grouped(matrix, self.group)
        biases = np.stack([part.max(1) for part in parts], 1).astype(np.float16)
        low = np.stack([part.min(1) for part in parts], 1)
        scales = ((low - biases) / top).astype(np.float16)  # negative, as MLX often has it
        group_of = groups_of(matrix.shape[1], self.group)
        scale, bias = scales.astype(np.float64)[:, group_of], biases.astype(np.float64)[:, group_of]
        codes = np.clip(np.rint((matrix - bias) / scale), 0, top).astype(np.int64)
        words = rows_to_words(codes, self.bits).view(np.uint32)
        return {"weight": words, "scales": scales, "biases": biases}, codes * scale + bias


@dataclass(frozen=True)
class FourBitFloats:
    """NVFP4 (groups of 16 under one scale) or MXFP4 (powers of two)."""

    group: int = 16
    modelopt: bool = False

    def __call__(self, matrix: Array) -> Packed:
        largest = np.stack([np.abs(p).max(1) for p in grouped(matrix, self.group)], 1) / 6
        tensors: Tensors = {}
        if self.group == 32:
            exponents = np.ceil(np.log2(np.maximum(largest, 1e-20))).astype(np.int64)
            scales = 2.0**exponents
            tensors["weight_scale"] = (exponents + 127).astype(np.uint8)
        else:
            outer = np.float32(448 / np.abs(largest).max())
            inner = (largest * outer).astype(E4M3)
            tensors["weight_scale"] = inner
            scales = inner.astype(np.float64) / float(outer)
            if self.modelopt:
                inverse = np.float32(1 / outer)
                tensors["weight_scale_2"] = np.array(inverse)
                scales = inner.astype(np.float64) * float(inverse)
            else:
                tensors["weight_global_scale"] = np.array([outer])
        spread = scales[:, groups_of(matrix.shape[1], self.group)]
        table = np.array(FP4)
        codes = np.abs(table - (matrix / np.maximum(spread, 1e-30))[..., None]).argmin(-1)
        name = "weight" if self.modelopt else "weight_packed"
        tensors[name] = (codes[:, 0::2] | codes[:, 1::2] << 4).astype(np.uint8)
        return tensors, table[codes] * spread


@dataclass(frozen=True)
class PackedInt:
    """compressed-tensors `pack-quantized`. packed_zeros: False as earlier versions stored them."""

    bits: int = 4
    group: int = 32
    symmetric: bool = True
    packed_zeros: bool = True
    dtype: Any = np.float32

    def __call__(self, matrix: Array) -> Packed:
        codes, scales, zeros = integer_grid(
            matrix, self.bits, self.group, self.symmetric, self.dtype
        )
        tensors = {
            "weight_packed": rows_to_words(codes, self.bits),
            "weight_scale": scales,
            "weight_shape": np.array(matrix.shape, np.int64),
        }
        if not self.symmetric and self.packed_zeros:
            words = rows_to_words(zeros.T, self.bits).T
            tensors["weight_zero_point"] = np.ascontiguousarray(words)
        elif not self.symmetric:
            tensors["weight_zero_point"] = (zeros - (1 << (self.bits - 1))).astype(np.int8)
        group_of = groups_of(matrix.shape[1], self.group)
        return tensors, integer_values(codes, scales, zeros, group_of)

    def config(self) -> dict[str, Any]:
        strategy = "channel" if self.group == -1 else "group"
        size = None if self.group == -1 else self.group
        weights = {"num_bits": self.bits, "type": "int", "symmetric": self.symmetric}
        return compressed_config(
            "pack-quantized", {**weights, "strategy": strategy, "group_size": size}
        )


def compressed_config(
    form: str, weights: Mapping[str, Any], inputs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


@dataclass(frozen=True)
class ForeignModel:
    """A folder, and what every matrix in it stands for."""

    folder: Path
    weights: Mapping[str, Array]


def write_foreign(
    folder: Path,
    packer: Packer,
    settings: Mapping[str, Any],
    key: str = "quantization_config",
    floats: tuple[str, ...] = ("lm_head", "embed_tokens"),
    change: Callable[[Tensors], None] = lambda tensors: None,
    **sizes: Any,
) -> ForeignModel:
    """A small model whose matrices the packer packs, but those whose names hold one of `floats`.

    change: damages the tensors before they are written.
    """
    config = small_config(**{"torch_dtype": "float16", **sizes})
    tensors: Tensors = {}
    weights: dict[str, Array] = {}
    for name, values in random_tensors(config).items():
        module = name.removesuffix(".weight")
        if values.ndim != 2 or any(part in name for part in floats):
            tensors[name] = values
            continue
        packed, weights[name] = packer(values.astype(np.float32))
        tensors |= {f"{module}.{kind}": np.asarray(t, order="C") for kind, t in packed.items()}
    change(tensors)
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    content = {**config, **({key: settings} if key else {})}
    (folder / "config.json").write_text(json.dumps(content))
    write_side_files(folder)
    return ForeignModel(folder, weights)
