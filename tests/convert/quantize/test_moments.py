"""Second moments against NumPy in float64, and how they are split to fit in memory."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.convert.quantize.calibration import moments as moments_module
from dsconv.convert.quantize.calibration.moments import InputStatistics, MomentSum, diagonal_blocks
from dsconv.quant.gptq import correction, factorize
from dsconv.quant.scale_min import ScaleMin

Blocks = Sequence[tuple[int, int]]


def batches(
    columns: int, dtype: torch.dtype, seed: int = 0
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """(inputs, original inputs) of odd numbers of positions."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for count in (5, 1, 133, 64, 77):
        x = torch.randn(count, columns, generator=generator) * torch.linspace(0.1, 3, columns)
        original = x + 0.2 * torch.randn(count, columns, generator=generator) + 0.1 * x.roll(1, 1)
        made.append((x.to(dtype), original.to(dtype)))
    return made


@torch.inference_mode()
def statistics(
    parts: list[tuple[torch.Tensor, torch.Tensor]],
    blocks: Blocks,
    two_streams: bool = True,
    threads: int = 2,
    centred: bool = False,
) -> InputStatistics:
    with Workers(threads) as workers, single_threaded_libraries():
        sums = MomentSum(blocks, two_streams, workers, centred)
        for x, original in parts:
            sums.add(x, original if two_streams else None)
        return sums.finish()


def assert_close(found: NDArray[np.float32], wanted: NDArray[np.float64], limit: float) -> None:
    """Relative to the sizes of the two columns that meet, not to the entry, which may be 0."""
    assert found.dtype == np.float32
    size = np.sqrt(np.abs(np.diagonal(wanted)))
    assert (np.abs(found - wanted) <= limit * np.outer(size, size)).all()


@pytest.mark.parametrize("tile", [1024, 32])
@pytest.mark.parametrize("columns", [1, 37, 130])
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str
)
def test_the_mean_outer_product(
    dtype: torch.dtype, limit: float, columns: int, tile: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "TILE", tile)
    parts = batches(columns, dtype)
    x = torch.cat([part[0] for part in parts]).double().numpy()
    original = torch.cat([part[1] for part in parts]).double().numpy()
    found = statistics(parts, [(0, columns)])
    wanted = x.T @ x / len(x)
    assert_close(found.moments[0], wanted, limit)
    np.testing.assert_array_equal(found.moments[0], found.moments[0].T)
    size = np.sqrt(np.diagonal(wanted))
    error = np.abs(found.differences[0] - (original - x).T @ x / len(x))
    assert (error <= limit * np.outer(size, size)).all()


@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)], ids=str
)
@pytest.mark.parametrize("blocks", [[(0, 60)], [(0, 32), (32, 60)]], ids=str)
def test_about_the_mean(dtype: torch.dtype, limit: float, blocks: Blocks) -> None:
    """Means a hundred times the deviation, which the products must not round away."""
    shift = 100 * torch.randn(60, generator=torch.Generator().manual_seed(3))
    parts = [((x + shift).to(dtype), (y + shift).to(dtype)) for x, y in batches(60, torch.float32)]
    x = torch.cat([part[0] for part in parts]).double().numpy()
    # What the sums are given: a difference in the type of the streams.
    difference = torch.cat([y - x for x, y in parts]).double().numpy()
    found = statistics(parts, blocks, centred=True)
    assert found.centred
    assert (np.abs(found.mean - x.mean(0)) <= limit * x.std(0) + 1e-4).all()
    np.testing.assert_allclose(found.mean_difference, difference.mean(0), atol=1e-5)
    covariance = np.cov(x.T, bias=True)
    mixed = (difference - difference.mean(0)).T @ (x - x.mean(0)) / len(x)
    for (start, stop), moment, cross in zip(blocks, found.moments, found.differences, strict=True):
        square = np.s_[start:stop, start:stop]
        assert_close(moment, covariance[square], limit)
        size = np.sqrt(np.diagonal(covariance))[start:stop]
        assert (np.abs(cross - mixed[square]) <= limit * np.outer(size, size)).all()


@pytest.mark.parametrize("two_streams", [False, True])
def test_blocks_are_squares_along_the_diagonal(
    two_streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "TILE", 16)
    parts = batches(100, torch.float32)
    blocks = [(0, 40), (40, 80), (80, 100)]
    whole = statistics(parts, [(0, 100)], two_streams)
    split = statistics(parts, blocks, two_streams)
    assert len(split.differences) == (3 if two_streams else 0)
    for index, (start, stop) in enumerate(blocks):
        square = np.s_[start:stop, start:stop]
        np.testing.assert_allclose(split.moments[index], whole.moments[0][square], atol=1e-5)
        if two_streams:
            wanted = whole.differences[0][square]
            np.testing.assert_allclose(split.differences[index], wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_bytes_do_not_depend_on_the_threads(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(moments_module, "TILE", 32)
    parts = batches(130, dtype)
    one, two = (statistics(parts, [(0, 96), (96, 130)], threads=count) for count in (1, 2))
    for a, b in zip(
        [*one.moments, *one.differences], [*two.moments, *two.differences], strict=True
    ):
        assert a.tobytes() == b.tobytes()


def test_equal_streams_have_no_difference() -> None:
    parts = [(x, x) for x, _ in batches(37, torch.bfloat16)]
    assert not statistics(parts, [(0, 37)]).differences[0].any()


@pytest.mark.parametrize(("columns", "group"), [(896, 32), (8960, 128), (100, 16), (37, 32)])
@pytest.mark.parametrize("megabytes", [1, 10, 200])
def test_blocks_are_whole_groups_and_as_few_as_fit(
    columns: int, group: int, megabytes: int
) -> None:
    blocks = diagonal_blocks(columns, group, megabytes << 20)
    assert blocks[0][0] == 0
    assert blocks[-1][1] == columns
    assert all(a[1] == b[0] for a, b in itertools.pairwise(blocks))
    assert all(start % group == 0 for start, _ in blocks)
    widths = [stop - start for start, stop in blocks]
    assert widths[:-1] == [max(widths)] * (len(widths) - 1)
    if max(widths) > group:
        assert memory_needed(len(blocks), max(widths)) <= megabytes << 20
    if len(blocks) > 1:
        units = -(-columns // group)
        wider = -(-units // (len(blocks) - 1)) * group
        assert memory_needed(len(blocks) - 1, wider) > megabytes << 20


def memory_needed(blocks: int, width: int) -> int:
    """H, D and U of every block, and one factorisation at a time."""
    return (3 * blocks + 1) * width * width * 4


@pytest.mark.parametrize("count", [1, 3])
def test_what_is_needed_is_what_the_split_reckons_with(count: int) -> None:
    """One square less is seen here: Cholesky's result is torch's memory."""
    width = 512
    moments = [np.eye(width, dtype=np.float32) for _ in range(count)]
    differences = [np.ones((width, width), np.float32) for _ in range(count)]
    square = width * width * 4
    tracemalloc.start()
    try:
        factor = factorize(moments, ScaleMin(4))
        correction(np.ones((8, count * width), np.float32), factor, differences)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (2 * count + 1) * square + peak <= 1.1 * memory_needed(count, width)


def test_one_block_when_everything_fits_or_nothing_may_be_split() -> None:
    assert diagonal_blocks(896, 32, 1 << 30) == [(0, 896)]
    assert diagonal_blocks(896, 896, 1) == [(0, 896)]
    assert diagonal_blocks(64, 32, 1) == [(0, 32), (32, 64)]
    assert diagonal_blocks(3, -1, 1) == [(0, 1), (1, 2), (2, 3)]
