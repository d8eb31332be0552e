"""The container against the safetensors library, both ways, and against files that lie."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hostile.mutations import mutate_safetensors
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from dsconv.convert.files import limits
from dsconv.convert.files.safetensors import (
    DTYPES,
    PlannedTensor,
    SafetensorsWriter,
    read_columns,
    read_metadata,
    read_rows,
    read_tensor_infos,
)
from dsconv.errors import InputError

TORCH = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
    "U64": torch.uint64,
    "I32": torch.int32,
    "U32": torch.uint32,
    "I16": torch.int16,
    "U16": torch.uint16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
}
SHAPES = [(), (1,), (5,), (3, 4), (0,), (0, 7), (3, 0), (2, 3, 2), (1, 1, 1, 1, 1, 1, 1, 2)]


def random_array(dtype: str, shape: tuple[int, ...], seed: int = 0) -> NDArray[Any]:
    """Any bit pattern, except that a BOOL is 0 or 1."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape, dtype=np.int64)) * DTYPES[dtype].itemsize
    raw = rng.integers(0, 2 if dtype == "BOOL" else 256, size, np.uint8)
    return np.frombuffer(raw.tobytes(), DTYPES[dtype]).reshape(shape)


def as_torch(array: NDArray[Any], dtype: str) -> torch.Tensor:
    if not array.size:
        return torch.empty(array.shape, dtype=TORCH[dtype])
    flat = torch.from_numpy(np.frombuffer(array.tobytes(), np.uint8).copy())
    return flat.view(TORCH[dtype]).reshape(array.shape)


def write(path: Path, arrays: dict[str, tuple[str, NDArray[Any]]]) -> None:
    planned = [PlannedTensor(name, dtype, a.shape) for name, (dtype, a) in arrays.items()]
    with SafetensorsWriter(path, planned) as writer:
        for name, (_, array) in arrays.items():
            writer.write(name, array)


def raw_file(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_what_is_written_and_the_other_way(tmp_path: Path, dtype: str) -> None:
    arrays = {f"t{i}": (dtype, random_array(dtype, s, i)) for i, s in enumerate(SHAPES)}
    write(tmp_path / "ours", arrays)
    theirs = {name: as_torch(array, dtype) for name, (_, array) in arrays.items()}
    save_file(theirs, tmp_path / "theirs", {"format": "pt"})
    read_back = load_file(tmp_path / "ours")
    infos = read_tensor_infos(tmp_path / "theirs")
    assert set(read_back) == set(infos) == set(arrays)
    for name, (_, array) in arrays.items():
        assert read_back[name].dtype == TORCH[dtype]
        assert tuple(read_back[name].shape) == array.shape == infos[name].shape
        raw = read_back[name].reshape(-1).view(torch.uint8).numpy().tobytes()
        assert raw == array.tobytes() == read_rows(infos[name]).tobytes()
        assert read_rows(infos[name]).dtype == DTYPES[dtype]


@pytest.mark.parametrize("part", [(0, 7), (2, 5), (6, 7), (3, 3)])
def test_columns_of_a_matrix(part: tuple[int, int], tmp_path: Path) -> None:
    array = random_array("I16", (5, 7))
    save_file({"first": torch.zeros(3), "m": as_torch(array, "I16")}, tmp_path / "f.safetensors")
    info = read_tensor_infos(tmp_path / "f.safetensors")["m"]
    np.testing.assert_array_equal(read_columns(info, *part), array[:, slice(*part)])


def test_all_dtypes_in_one_file(tmp_path: Path) -> None:
    arrays = {dtype: (dtype, random_array(dtype, (3, 5))) for dtype in DTYPES}
    write(tmp_path / "mixed", arrays)
    assert {name: t.dtype for name, t in load_file(tmp_path / "mixed").items()} == TORCH


def test_metadata_goes_both_ways(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "ours", [], {"b": "2", "a": "ü"}):
        pass
    with safe_open(tmp_path / "ours", "pt") as file:
        assert file.metadata() == {"a": "ü", "b": "2"}
    save_file({"x": torch.zeros(1)}, tmp_path / "theirs", {"k": "v"})
    assert read_metadata(tmp_path / "theirs") == {"k": "v"}
    save_file({"x": torch.zeros(1)}, tmp_path / "none")
    assert read_metadata(tmp_path / "none") == {}


@pytest.mark.parametrize(("start", "stop"), [(0, 0), (0, 3), (2, 7), (6, 7), (0, 7)])
@pytest.mark.parametrize("shape", [(7,), (7, 3), (7, 2, 2), (7, 0)])
def test_rows_are_a_slice(tmp_path: Path, shape: tuple[int, ...], start: int, stop: int) -> None:
    array = random_array("I16", shape)
    write(tmp_path / "file", {"before": ("U8", random_array("U8", (3,))), "t": ("I16", array)})
    found = read_rows(read_tensor_infos(tmp_path / "file")["t"], start, stop)
    np.testing.assert_array_equal(found, array[start:stop])


def test_rows_may_be_written_in_pieces_and_tensors_in_any_order(tmp_path: Path) -> None:
    first, second = random_array("BF16", (6, 4)), random_array("I32", (5, 2))
    planned = [PlannedTensor("first", "BF16", (6, 4)), PlannedTensor("second", "I32", (5, 2))]
    with SafetensorsWriter(tmp_path / "file", planned) as writer:
        for name, rows in (
            ("second", second[:2]),
            ("first", first[:5]),
            ("second", second[2:]),
            ("first", first[5:]),
        ):
            writer.write(name, rows)
    infos = read_tensor_infos(tmp_path / "file")
    assert read_rows(infos["first"]).tobytes() == first.tobytes()
    assert read_rows(infos["second"]).tobytes() == second.tobytes()


def test_a_file_of_a_killed_run_is_completed(tmp_path: Path) -> None:
    """Nothing is cut off from a file that is gone on with, and what is skipped stays."""
    first, second = np.arange(12, dtype=np.float32).reshape(3, 4), np.full(5, 7, np.uint8)
    planned = [PlannedTensor("a", "F32", (3, 4)), PlannedTensor("b", "U8", (5,))]
    path = tmp_path / "x.safetensors"
    writer = SafetensorsWriter(path, planned)
    writer.__enter__()
    writer.write("a", first)
    writer.write("b", second[:3])  # half-done: the next run does not know of it
    writer.flush()
    np.testing.assert_array_equal(read_rows(read_tensor_infos(path)["a"]), first)
    with SafetensorsWriter(path, planned, resume=True) as again:
        again.skip("a")
        again.write("b", second)
    writer.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    infos = read_tensor_infos(path)
    np.testing.assert_array_equal(read_rows(infos["a"]), first)
    np.testing.assert_array_equal(read_rows(infos["b"]), second)


def test_without_resume_an_old_file_is_written_anew(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(b"x" * 10_000)
    with SafetensorsWriter(path, [PlannedTensor("a", "U8", (3,))]) as writer:
        writer.write("a", np.zeros(3, np.uint8))
    assert list(read_tensor_infos(path)) == ["a"]


def test_resuming_where_there_is_no_file_begins_one(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with SafetensorsWriter(path, [PlannedTensor("a", "U8", (3,))], resume=True) as writer:
        writer.write("a", np.ones(3, np.uint8))
    np.testing.assert_array_equal(read_rows(read_tensor_infos(path)["a"]), np.ones(3))


def test_a_skipped_tensor_takes_no_more_bytes(tmp_path: Path) -> None:
    with SafetensorsWriter(tmp_path / "x", [PlannedTensor("a", "U8", (3,))]) as writer:
        writer.skip("a")
        with pytest.raises(RuntimeError, match="more bytes than announced"):
            writer.write("a", np.zeros(1, np.uint8))


def test_a_slice_of_columns_is_written_as_it_looks(tmp_path: Path) -> None:
    array = np.arange(24, dtype=np.float32).reshape(4, 6)[:, ::2]
    write(tmp_path / "file", {"t": ("F32", array)})
    np.testing.assert_array_equal(load_file(tmp_path / "file")["t"].numpy(), array)


def test_data_is_aligned_for_mapping(tmp_path: Path) -> None:
    for length in range(1, 70):
        write(tmp_path / "file", {"n" * length: ("F32", np.zeros(1, np.float32))})
        assert read_tensor_infos(tmp_path / "file")["n" * length].offset % 64 == 0


@pytest.mark.parametrize("rows", [3, 5])
def test_bytes_that_were_not_announced_are_our_bug(tmp_path: Path, rows: int) -> None:
    planned = [PlannedTensor("t", "F32", (4,))]
    with (
        pytest.raises(RuntimeError, match="than announced"),
        SafetensorsWriter(tmp_path / "file", planned) as writer,
    ):
        writer.write("t", np.zeros(rows, np.float32))


def entry(
    dtype: object = "U8", shape: object = (4,), offsets: object = (0, 4)
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


LIES: dict[str, tuple[object, bytes, str]] = {
    "hole": ({"a": entry(), "b": entry(offsets=(5, 9))}, bytes(9), "hole or an overlap"),
    "hole at the start": ({"a": entry(offsets=(1, 5))}, bytes(5), "hole or an overlap"),
    "overlap": ({"a": entry(), "b": entry(offsets=(2, 6))}, bytes(6), "hole or an overlap"),
    "same bytes twice": ({"a": entry(), "b": entry()}, bytes(4), "hole or an overlap"),
    "cut": ({"a": entry()}, bytes(3), "ends at byte 4 of the data, which has 3"),
    "bytes after the end": ({"a": entry()}, bytes(5), "1 bytes after the last tensor"),
    "no tensors, but data": ({}, bytes(1), "1 bytes after the last tensor"),
    "size": ({"a": entry(shape=(5,))}, bytes(4), "needs 5 bytes, the header gives 4"),
    "backwards": ({"a": entry(offsets=(4, 0))}, bytes(4), "needs 4 bytes, the header gives -4"),
    "huge shape": ({"a": entry(shape=(2**62, 2**62))}, bytes(4), "needs"),
    "shape of 5000 digits": (b'{"a":{"shape":[' + b"9" * 5000 + b"]}}", b"", "digits"),
    "negative shape": ({"a": entry(shape=(-4,))}, bytes(4), "shape"),
    "shape with a bool": ({"a": entry(shape=(True, 4))}, bytes(4), "shape"),
    "shape with a float": ({"a": entry(shape=(4.0,))}, bytes(4), "shape"),
    "shape is text": ({"a": entry(shape="4")}, bytes(4), "shape"),
    "rank 9": ({"a": entry(shape=(1,) * 8 + (4,))}, bytes(4), "rank 9, limit 8"),
    "no shape": ({"a": {"dtype": "U8", "data_offsets": [0, 4]}}, bytes(4), "shape"),
    "three offsets": ({"a": entry(offsets=(0, 2, 4))}, bytes(4), "data_offsets"),
    "negative offset": ({"a": entry(offsets=(-4, 0))}, bytes(4), "data_offsets"),
    "offset of 2^63": ({"a": entry(offsets=(2**63, 2**63 + 4))}, bytes(4), "data_offsets"),
    "unknown dtype": ({"a": entry(dtype="F4")}, bytes(4), "dtype 'F4' is not supported"),
    "dtype is no text": ({"a": entry(dtype=["U8"])}, bytes(4), "is not supported"),
    "entry is no object": ({"a": [1]}, b"", "entry is not an object"),
    "header is a list": ([], b"", "the header is not an object"),
    "header is no JSON": (b"{nope}", b"", "not valid JSON"),
    "header with NaN": (b'{"a":NaN}', b"", "not valid JSON"),
    "tensor twice": (b'{"a":1,"a":1}', b"", "appears twice"),
    "control character": ({"a\0b": entry()}, bytes(4), "a control character"),
    "line break": ({"a\nb": entry()}, bytes(4), "a control character"),
    "long name": ({"a" * 513: entry()}, bytes(4), "513 bytes, limit 512"),
    "deep header": (b'{"a":' * 100_000, b"", "nested too deeply"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_header_is_refused(tmp_path: Path, lie: str) -> None:
    header, data, reason = LIES[lie]
    path = raw_file(tmp_path / "model.safetensors", header, data)
    with pytest.raises(InputError, match=r"model\.safetensors") as caught:
        read_tensor_infos(path)
    assert reason in caught.value.message


@pytest.mark.parametrize("content", [b"", b"\x01", bytes(7), (2**63).to_bytes(8, "little") + b"{}"])
def test_a_stump_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(InputError):
        read_tensor_infos(tmp_path / "file")


@pytest.mark.parametrize("length", [10, 99_000_000, 100_000_001, 2**63, 2**64 - 1])
def test_a_header_longer_than_the_file_is_refused_unread(tmp_path: Path, length: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(length.to_bytes(8, "little") + b"{}")
    with pytest.raises(InputError, match=f"header of {length} bytes"):
        read_tensor_infos(path)


def test_a_header_beyond_the_limit_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = raw_file(tmp_path / "file", {"a": entry()}, bytes(4))
    monkeypatch.setattr(limits, "HEADER_BYTES", 10)
    with pytest.raises(InputError, match="limit 10"):
        read_tensor_infos(path)


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TENSORS", 2)
    header = {str(index): entry(shape=(0,), offsets=(0, 0)) for index in range(3)}
    with pytest.raises(InputError, match="3 tensors, limit 2"):
        read_tensor_infos(raw_file(tmp_path / "file", header))


def test_metadata_must_be_an_object(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="__metadata__"):
        read_metadata(raw_file(tmp_path / "file", {"__metadata__": []}))


def test_a_file_cut_after_it_was_opened_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "file", {"t": ("F32", np.ones(8, np.float32))})
    info = read_tensor_infos(tmp_path / "file")["t"]
    (tmp_path / "file").write_bytes((tmp_path / "file").read_bytes()[:-1])
    with pytest.raises(InputError, match="'t': the file ends too early"):
        read_rows(info)
    (tmp_path / "file").unlink()
    with pytest.raises(InputError, match="'t': cannot read"):
        read_rows(info)


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "missing", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_tensor_infos(path)


def test_whatever_is_accepted_the_library_accepts_too(tmp_path: Path) -> None:
    rng = random.Random(4)
    path = tmp_path / "file"
    header = {"a": entry("F32", [2, 3], [0, 24]), "b": entry("I16", [4], [24, 32])}
    data = raw_file(path, header, bytes(range(32))).read_bytes()
    accepted = 0
    for _ in range(2000):
        path.write_bytes(mutate_safetensors(rng, data))
        try:
            infos = read_tensor_infos(path)
        except InputError:
            continue
        accepted += 1
        with safe_open(path, "pt") as file:
            for name, info in infos.items():
                raw = file.get_tensor(name).reshape(-1).view(torch.uint8).numpy().tobytes()
                assert raw == read_rows(info).tobytes()
    assert accepted > 20
