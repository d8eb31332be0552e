"""A GGUF model in several files, as the package gguf writes them and llama.cpp reads them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_models import checkpoint_tensors, metadata, plain_tensors
from processes.llama_cpp_process import next_token_log_probabilities

from dsconv.convert.files.gguf_parts import part_names
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.sessions.torch_reference import TorchSession


def write_parts(folder: Path, arch: str = "llama", per_part: int = 9, **options: Any) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(folder / "m.gguf", arch, split_max_tensors=per_part, **options)
    for key, value in metadata(arch).items():
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        else:
            writer.add_uint32(key, value)
    for name, (values, kind) in plain_tensors(arch).items():
        factor = 0.06 if values.ndim == 2 else 1
        writer.add_tensor(name, np.float32(factor) * values, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return sorted(folder.glob("m-0*.gguf"))


def change(path: Path, key: str, number: int, width: int = 2) -> None:
    """Another number under a key, in place."""
    data = path.read_bytes()
    place = data.index(key.encode()) + len(key) + 4
    path.write_bytes(data[:place] + number.to_bytes(width, "little") + data[place + width :])


@pytest.mark.parametrize("options", [{}, {"small_first_shard": True}])
def test_any_part_opens_the_model(tmp_path: Path, options: dict[str, Any]) -> None:
    parts = write_parts(tmp_path, **options)
    assert len(parts) > 2
    original = checkpoint_tensors("llama")
    for part in (parts[0], parts[-1]):
        checkpoint = open_checkpoint(str(part))
        assert checkpoint.source.files() == parts
        assert set(checkpoint.parameters) == set(original)
        for name, values in original.items():
            factor = np.float32(0.06 if values.ndim == 2 else 1)
            np.testing.assert_array_equal(checkpoint.rows(name), factor * values, err_msg=name)
    assert describe(str(parts[1])).parameters == sum(v.size for v in original.values())


def test_llama_cpp_reads_the_same_model(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    session = TorchSession(open_checkpoint(str(parts[1])))
    ours = session.score([5, 9, 40, 77])[-1].astype(np.float64)
    theirs = next_token_log_probabilities(parts[0], [[5, 9, 40, 77]], session.vocabulary, True)
    assert float(np.abs(ours - np.logaddexp.reduce(ours) - theirs[0]).max()) < 1e-4


def test_names_of_parts() -> None:
    assert part_names("a-00002-of-00003.gguf") == tuple(
        f"a-0000{number}-of-00003.gguf" for number in (1, 2, 3)
    )
    assert part_names("A-00001-of-00001.GGUF") == ("A-00001-of-00001.GGUF",)
    for name in ("a.gguf", "a-1-of-3.gguf", "a-00001-of-00000.gguf", "a-00001-of-99999.gguf"):
        assert part_names(name) == (name,)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    parts[1].unlink()
    with pytest.raises(InputError, match=f"one of {len(parts)} parts; {parts[1].name} is not"):
        open_checkpoint(str(parts[0]))
    parts[0].unlink()
    with pytest.raises(InputError, match=f"{parts[0].name} \\(and 1 more\\) is not beside it"):
        open_checkpoint(str(parts[2]))


def test_a_name_that_does_not_say_which_part(tmp_path: Path) -> None:
    parts = write_parts(tmp_path)
    lone = tmp_path / "renamed.gguf"
    shutil.copy(parts[0], lone)
    with pytest.raises(InputError, match=r"one of \d parts .* its name does not say") as caught:
        open_checkpoint(str(lone))
    assert "renamed-00001-of-0000" in caught.value.hint


@pytest.mark.parametrize(
    ("place", "key", "number", "width"),
    [(1, "split.no", 0, 2), (1, "split.count", 2, 2), (1, "split.tensors.count", 5, 4)],
)
def test_parts_that_contradict_each_other(
    tmp_path: Path, place: int, key: str, number: int, width: int
) -> None:
    parts = write_parts(tmp_path)
    change(parts[place], key, number, width)
    with pytest.raises(InputError, match=f"{key} is {number}") as caught:
        open_checkpoint(str(parts[0]))
    assert "not of one model" in caught.value.hint


def test_parts_of_two_models(tmp_path: Path) -> None:
    """Equal names, another number of tensors in each."""
    parts = write_parts(tmp_path / "a", per_part=9)
    others = write_parts(tmp_path / "b", "qwen2", per_part=8)
    assert len(parts) == len(others)
    shutil.copy(others[1], parts[1])
    with pytest.raises(InputError, match=r"is in .* too|split\.tensors\.count|is not"):
        open_checkpoint(str(parts[0]))
