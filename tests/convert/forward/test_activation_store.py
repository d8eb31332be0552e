"""Activations in memory up to a limit, then in a file without a name."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from dsconv.convert.forward import activation_store as activations
from dsconv.convert.forward.activation_store import ActivationStore, raw_bytes

DTYPES = [torch.bfloat16, torch.float32]


def window(index: int, dtype: torch.dtype = torch.bfloat16, features: int = 16) -> torch.Tensor:
    """[1, 3 to 9, features], different for every index."""
    generator = torch.Generator().manual_seed(index)
    return torch.randn(1, 3 + index % 7, features, generator=generator).to(dtype)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_bytes", [0, 700, 1 << 20])
def test_what_was_put_is_given_back(dtype: torch.dtype, max_bytes: int, tmp_path: Path) -> None:
    store = ActivationStore(tmp_path, max_bytes)
    windows = store.new(20)
    assert len(windows) == 20
    for index in reversed(range(20)):
        windows.put(index, window(index, dtype))
    for index in range(20):
        found = windows.get(index)
        assert found.dtype == dtype
        assert torch.equal(found, window(index, dtype))
        assert torch.equal(windows.get(index), found)
    total = sum(window(index, dtype).nbytes for index in range(20))
    if max_bytes == 0:
        assert store.spilled_bytes == total
    elif max_bytes > total:
        assert store.spilled_bytes == 0
    else:
        assert total - max_bytes <= store.spilled_bytes < total


def test_values_that_are_no_numbers_survive_the_file(tmp_path: Path) -> None:
    odd = torch.tensor([[[float("nan"), float("inf"), -float("inf"), -0.0, 1e-40]]])
    windows = ActivationStore(tmp_path, 0).new(1)
    windows.put(0, odd)
    assert raw_bytes(windows.get(0)).tobytes() == raw_bytes(odd).tobytes()


def test_dropping_makes_room_in_memory(tmp_path: Path) -> None:
    size = window(0).nbytes
    store = ActivationStore(tmp_path, size)
    windows = store.new(3)
    windows.put(0, window(0))
    windows.put(1, window(7))
    assert store.spilled_bytes == size
    windows.drop(0)
    windows.drop(0)  # once is enough: the memory is not given back twice
    windows.put(2, window(14))
    assert store.spilled_bytes == size
    assert not store.claim(1)
    with pytest.raises(RuntimeError, match="window 0 is not stored"):
        windows.get(0)
    assert torch.equal(windows.get(2), window(14))


def test_windows_nobody_holds_make_room_and_close_their_file(tmp_path: Path) -> None:
    before = open_files()
    store = ActivationStore(tmp_path, 2 * window(0).nbytes)
    windows = store.new(4)
    for index in range(4):
        windows.put(index, window(7 * index))
    assert open_files() == before + 1
    del windows
    assert open_files() == before
    assert store.claim(2 * window(0).nbytes)


def test_no_file_is_ever_seen(tmp_path: Path) -> None:
    windows = ActivationStore(tmp_path, 0).new(3)
    for index in range(3):
        windows.put(index, window(index))
        assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_file(tmp_path: Path) -> None:
    program = (
        "import os, sys, torch; from pathlib import Path\n"
        "from dsconv.convert.forward.activation_store import ActivationStore\n"
        "windows = ActivationStore(Path(sys.argv[1]), 0).new(1)\n"
        "windows.put(0, torch.ones(1, 4, 4)); os._exit(7)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], timeout=60)
    assert done.returncode == 7
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("max_bytes", [0, 3000, 1 << 20])
def test_several_threads_may_put_and_get(max_bytes: int, tmp_path: Path) -> None:
    windows = ActivationStore(tmp_path, max_bytes).new(200)

    def work(index: int) -> bool:
        windows.put(index, window(index))
        return torch.equal(windows.get(index), window(index))

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(200)))
    assert all(torch.equal(windows.get(index), window(index)) for index in range(200))


def test_short_reads_and_writes_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, read = os.pwrite, os.preadv
    monkeypatch.setattr(
        activations.os, "pwrite", lambda file, data, offset: write(file, data[:5], offset)
    )
    monkeypatch.setattr(
        activations.os, "preadv", lambda file, data, offset: read(file, [data[0][:7]], offset)
    )
    windows = ActivationStore(tmp_path, 0).new(2)
    for index in range(2):
        windows.put(index, window(index))
    assert all(torch.equal(windows.get(index), window(index)) for index in range(2))


def test_a_file_that_ends_early_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    windows = ActivationStore(tmp_path, 0).new(1)
    windows.put(0, window(0))
    monkeypatch.setattr(activations.os, "preadv", lambda file, data, offset: 0)
    with pytest.raises(OSError, match="shorter than what was written"):
        windows.get(0)
