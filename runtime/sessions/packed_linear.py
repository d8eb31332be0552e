"""Matrices of a checkpoint on a torch device, packed as they are stored where that is possible."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as functional
from numpy.typing import NDArray

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.forward.torch_ops import load_parameter
from dsconv.quant.integer import IntegerMatrix, IntegerScheme
from dsconv.quant.packing import pack_rows
from dsconv.quant.schemes import Scheme

KERNEL_GROUPS = (32, 64, 128, 256)
INNER_K_TILES = 8  # of the CUDA kernel's layout; the widest loads
KERNEL_DTYPES = {"cuda": (torch.bfloat16,), "cpu": (torch.float32, torch.bfloat16)}


class Matrix(Protocol):
    """W [outputs, inputs]."""

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """x Wᵀ, x [..., inputs]."""
        ...

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        """W[indices], for embeddings."""
        ...


class DenseMatrix:
    """In the dtype of the computation."""

    def __init__(self, weight: torch.Tensor) -> None:
        self._weight = weight

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._weight)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        return functional.embedding(indices, self._weight)


class PackedMatrix:
    """Codes as stored (two to a byte with 4 bits), unpacked whenever they are needed.

    Works on any device: bitwise and elementwise operators only.
    """

    def __init__(self, quantized: IntegerMatrix, dtype: torch.dtype, device: str) -> None:
        scheme = quantized.scheme
        self._bits, self._columns = scheme.bits, quantized.codes.shape[1]
        self._codes = torch.from_numpy(pack_rows(quantized.codes, scheme.bits)).to(device)
        self._scales = torch.from_numpy(quantized.scales).to(device, dtype)
        zeros = quantized.zeros
        self._zeros = None if zeros is None else torch.from_numpy(zeros).to(device, dtype)
        self._zero = scheme.zero
        self._group = scheme.group_length(self._columns)
        self._dtype = dtype

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self._unpack(self._codes, self._scales, self._zeros))

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        zeros = None if self._zeros is None else self._zeros[indices]
        return self._unpack(self._codes[indices], self._scales[indices], zeros)

    def _unpack(
        self, packed: torch.Tensor, scales: torch.Tensor, zeros: torch.Tensor | None
    ) -> torch.Tensor:
        """scale * (code - zero) -> [rows, columns]."""
        codes = packed
        if self._bits == 4:  # low nibble first
            codes = torch.stack((packed & 15, packed >> 4), dim=-1).flatten(-2)
        groups = scales.shape[-1]
        missing = groups * self._group - codes.shape[-1]
        codes = functional.pad(codes, (0, missing)) if missing > 0 else codes
        codes = codes[..., : groups * self._group].reshape(*codes.shape[:-1], groups, self._group)
        centre = self._zero if zeros is None else zeros[..., None]
        weights: torch.Tensor = (codes.to(self._dtype) - centre) * scales[..., None]
        found: torch.Tensor = weights.flatten(-2)[..., : self._columns]
        return found


class KernelMatrix:
    """Four bits through torch's own kernel: w = (code - 8) * scale + offset, per group."""

    def __init__(self, quantized: IntegerMatrix, dtype: torch.dtype, device: str) -> None:
        codes = torch.from_numpy(quantized.codes)
        scales = torch.from_numpy(quantized.scales.astype(np.float32))
        zeros = quantized.zeros
        shift = 0.0 if zeros is None else 8.0 - torch.from_numpy(zeros).float()
        pairs = torch.stack((scales, scales * shift), dim=-1)  # [outputs, groups, 2]
        self._scales = pairs.transpose(0, 1).contiguous().to(device, dtype)
        self._group = quantized.scheme.group_size
        self._outputs = codes.shape[0]
        self._on_cpu = torch.device(device).type == "cpu"
        if self._on_cpu:
            self._codes = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.int(), 1)
        else:  # the CUDA kernel wants the first of two codes in the high nibble
            pairs = (codes[:, 0::2] << 4) | codes[:, 1::2]
            self._codes = torch.ops.aten._convert_weight_to_int4pack(
                pairs.to(device).contiguous(), INNER_K_TILES
            )

    def product(self, x: torch.Tensor) -> torch.Tensor:
        flat = x.reshape(-1, x.shape[-1])
        operators = torch.ops.aten
        kernel = (
            operators._weight_int4pack_mm_for_cpu if self._on_cpu else operators._weight_int4pack_mm
        )
        found: torch.Tensor = kernel(flat, self._codes, self._group, self._scales)
        return found.reshape(*x.shape[:-1], self._outputs)

    def rows(self, indices: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("the kernel's layout has no rows; use PackedMatrix for an embedding")


def kernel_takes(scheme: Scheme, shape: tuple[int, ...], dtype: torch.dtype, device: str) -> bool:
    """Has torch a 4-bit kernel for such a matrix on such a kind of device?"""
    kind = torch.device(device).type
    outputs, inputs = shape
    if torch.version.hip is not None and kind == "cuda":  # AMD's and Hygon's layout differs
        return False
    return (
        scheme.bits == 4
        and dtype in KERNEL_DTYPES.get(kind, ())
        and scheme.group_size in KERNEL_GROUPS
        and inputs % scheme.group_size == 0
        and inputs % (INNER_K_TILES * 16) == 0
        and outputs % 16 == 0
    )


@cache
def kernel_works(device: str, dtype: torch.dtype) -> bool:
    """Try the kernel on a small matrix: builds for other makers' devices, which answer to `cuda`,
    and devices that are too old, may lack it or read another layout."""
    random = np.random.default_rng(0)
    codes = random.integers(0, 16, (16, INNER_K_TILES * 16), np.uint8)
    scales = random.uniform(0.5, 1.5, (16, INNER_K_TILES * 16 // KERNEL_GROUPS[0]))
    quantized = IntegerMatrix(
        codes, scales.astype(np.float16), None, IntegerScheme(4, KERNEL_GROUPS[0])
    )
    x = torch.from_numpy(random.standard_normal((2, codes.shape[1])).astype(np.float32))
    expected = PackedMatrix(quantized, torch.float32, "cpu").product(x)
    try:
        found = KernelMatrix(quantized, dtype, device).product(x.to(device, dtype)).float().cpu()
    except (RuntimeError, NotImplementedError):
        return False
    return bool((found - expected).abs().max() <= 0.02 * expected.abs().max())


def load_matrix(
    checkpoint: Checkpoint, name: str, dtype: torch.dtype, device: str, gathers: bool = False
) -> Matrix:
    """Read a matrix; packed if it has integer codes, with torch's kernel unless it `gathers`."""
    scheme = checkpoint.scheme(name)
    if scheme is None or not scheme.is_plain:
        return DenseMatrix(load_parameter(checkpoint, name, dtype, device))
    shape = checkpoint.parameters[name].shape
    quantized = IntegerMatrix.of(checkpoint.quantized_rows(name, 0, shape[0]))
    whole = replace(quantized, scales=_floats(quantized.scales))
    if not gathers and kernel_takes(scheme, shape, dtype, device) and kernel_works(device, dtype):
        return KernelMatrix(whole, dtype, device)
    return PackedMatrix(whole, dtype, device)


def _floats(scales: NDArray[np.float16]) -> NDArray[np.float16]:
    """A copy that torch may own: files are mapped read-only."""
    return np.array(scales)
