"""Which files of a folder are its weights, and what a folder is that has none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from small_models import random_tensors, small_config, write_checkpoint, write_json

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.weight_files import INDEX, choose_weight_files
from dsconv.convert.open import open_checkpoint
from dsconv.errors import DsconvError, InputError, UnsupportedError
from dsconv.runtime.text.tokenizer import TextTokenizer

ONE = "model.safetensors"
TENSOR = "model.layers.1.mlp.up_proj.weight"


def same_as(checkpoint: Checkpoint, seed: int = 0) -> bool:
    expected = random_tensors(small_config(), seed)
    return all(
        np.array_equal(checkpoint.rows(name), array.astype(np.float32))
        for name, array in expected.items()
    )


def sharded(folder: Path, count: int = 3) -> list[Path]:
    """Shards named as is usual, without their index."""
    write_checkpoint(folder, shards=count)
    (folder / INDEX).unlink()
    found = []
    for number, path in enumerate(sorted(folder.glob("*.safetensors")), 1):
        found.append(path.rename(folder / f"model-{number:05}-of-{count:05}.safetensors"))
    return found


@pytest.mark.parametrize(
    "other",
    [
        "consolidated.safetensors",
        "model.fp16.safetensors",
        "optimizer.safetensors",
        "x.safetensors",
    ],
)
def test_one_whole_file_is_read_whatever_lies_beside_it(tmp_path: Path, other: str) -> None:
    folder = write_checkpoint(tmp_path / "m")
    save_file({"layers.0.wq.weight": np.zeros((2, 2), np.float32)}, folder / other)
    checkpoint = open_checkpoint(str(folder))
    assert same_as(checkpoint)
    assert other in " ".join(checkpoint.notes)


def test_an_adapter_beside_a_whole_model_is_named(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    write_json(folder / "adapter_config.json", {"peft_type": "LORA"})
    (folder / "adapter_model.bin").write_bytes(b"x")
    checkpoint = open_checkpoint(str(folder))
    assert same_as(checkpoint)
    assert "not adapter_config.json, adapter_model.bin" in " ".join(checkpoint.notes)


def test_shards_without_an_index_are_put_together_by_their_headers(tmp_path: Path) -> None:
    sharded(tmp_path / "m")
    assert same_as(open_checkpoint(str(tmp_path / "m")))


def test_a_shard_that_is_missing_is_named_by_its_number(tmp_path: Path) -> None:
    sharded(tmp_path / "m")[1].unlink()
    with pytest.raises(InputError, match=r"2 of 3 shards are there, number 2 of model-…"):
        open_checkpoint(str(tmp_path / "m"))


def test_two_sets_of_shards_are_refused(tmp_path: Path) -> None:
    shards = sharded(tmp_path / "m")
    shutil.copy(shards[0], tmp_path / "m" / "model-00001-of-00002.safetensors")
    with pytest.raises(InputError, match="2 sets of shards"):
        open_checkpoint(str(tmp_path / "m"))


@pytest.mark.parametrize("is_equal", [True, False])
def test_a_tensor_in_two_files(tmp_path: Path, is_equal: bool) -> None:
    shards = sharded(tmp_path / "m")
    tensors = [load_file(path) for path in shards]
    home = next(index for index, held in enumerate(tensors) if TENSOR in held)
    copy = tensors[home][TENSOR].copy()
    copy[-1, -1] += 0 if is_equal else 1
    save_file({**tensors[home - 1], TENSOR: copy}, shards[home - 1])
    if is_equal:
        assert same_as(open_checkpoint(str(tmp_path / "m")))
        return
    with pytest.raises(InputError, match=f"'{TENSOR}' is in"):
        open_checkpoint(str(tmp_path / "m"))


def test_an_index_of_an_earlier_save_does_not_hide_the_one_file(tmp_path: Path) -> None:
    """save_pretrained leaves the index when a model is saved again in one file."""
    folder = write_checkpoint(tmp_path / "m")
    names = dict.fromkeys(random_tensors(small_config()), "model-00001-of-00002.safetensors")
    write_json(folder / INDEX, {"weight_map": names})
    assert same_as(open_checkpoint(str(folder)))


def test_beside_an_index_one_whole_file_is_read_as_transformers_does(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2, seed=1)
    write_checkpoint(tmp_path / "one")
    shutil.copy(tmp_path / "one" / ONE, folder / ONE)
    checkpoint = open_checkpoint(str(folder))
    assert same_as(checkpoint)
    assert "model-00001-of-000002.safetensors" in " ".join(checkpoint.notes)
    transformers = pytest.importorskip("transformers")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    theirs = dict(model.state_dict())[TENSOR].numpy()
    np.testing.assert_array_equal(checkpoint.rows(TENSOR), theirs)


def test_a_variant_alone_is_read_and_two_are_refused(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / ONE).rename(folder / "model.fp16.safetensors")
    assert same_as(open_checkpoint(str(folder)))
    shutil.copy(folder / "model.fp16.safetensors", folder / "model.bf16.safetensors")
    with pytest.raises(InputError, match="2 variants"):
        open_checkpoint(str(folder))


def test_an_index_of_a_variant(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m", shards=2)
    (folder / INDEX).rename(folder / "model.safetensors.index.fp16.json")
    assert same_as(open_checkpoint(str(folder)))


@pytest.mark.parametrize(
    ("names", "kind", "words"),
    [
        ((), InputError, "no .safetensors files"),
        (("adapter_model.safetensors",), UnsupportedError, "holds an adapter"),
        (("consolidated.safetensors",), InputError, "another layout"),
        (("pytorch_model.bin",), UnsupportedError, "pickle"),
        (("m-Q4_K_M.gguf",), UnsupportedError, "GGUF: m-Q4_K_M.gguf"),
        (("fp16/model.safetensors",), InputError, "fp16/model.safetensors below it"),
        (("model.safetensors.incomplete",), InputError, "not finished"),
    ],
)
def test_without_weights_it_says_what_is_there(
    names: tuple[str, ...], kind: type[DsconvError], words: str
) -> None:
    with pytest.raises(kind) as caught:
        choose_weight_files("m", ("config.json", *names))
    assert words in caught.value.message


def _folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text("{}")
    path.mkdir(exist_ok=True)
    return path


@pytest.mark.parametrize(
    ("names", "words", "cure"),
    [
        ((), "an empty folder", "check the path"),
        (("m.gguf",), "but 1 GGUF", "m.gguf"),
        (("hf/config.json",), "but one in hf", "hf"),
        (("params.json",), "layout of the model's makers", "Hugging Face"),
        (("adapter_model.safetensors",), "holds an adapter", "merge"),
    ],
)
def test_a_folder_without_config(
    tmp_path: Path, names: tuple[str, ...], words: str, cure: str
) -> None:
    with pytest.raises(DsconvError) as caught:
        open_checkpoint(str(_folder(tmp_path / "m", *names)))
    assert words in caught.value.message
    assert cure in caught.value.hint


def test_an_adapter_is_told_with_its_base(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "m", "adapter_model.safetensors")
    write_json(
        folder / "adapter_config.json", {"peft_type": "LORA", "base_model_name_or_path": "org/base"}
    )
    with pytest.raises(UnsupportedError, match="a LORA adapter of 'org/base' and no model"):
        open_checkpoint(str(folder))


def test_the_folder_of_the_hubs_cache_leads_to_its_snapshot(tmp_path: Path) -> None:
    model = tmp_path / "models--org--small"
    write_checkpoint(model / "snapshots" / "abc123")
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("abc123")
    for folder in (model, model / "snapshots"):
        with pytest.raises(InputError, match="of the hub's cache") as caught:
            open_checkpoint(str(folder))
        assert caught.value.hint == f"use {model / 'snapshots' / 'abc123'}"
    assert same_as(open_checkpoint(str(model / "snapshots" / "abc123")))


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("name", [ONE, "config.json", "tokenizer.json", "model.gguf"])
@pytest.mark.parametrize(
    ("content", "words"),
    [
        (POINTER, "a Git LFS pointer"),
        ("<!DOCTYPE html><html><body>404</body></html>", "a web page"),
        ("", "empty (0 bytes)"),
    ],
)
def test_what_is_not_the_file_that_it_claims_to_be(
    tmp_path: Path, name: str, content: str, words: str
) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / name).write_text(content)
    model = folder / name if name.endswith(".gguf") else folder
    with pytest.raises(InputError) as caught:
        _open_with_tokenizer(model)
    assert words in caught.value.message
    assert name in caught.value.message


def _open_with_tokenizer(model: Path) -> None:
    checkpoint = open_checkpoint(str(model))
    TextTokenizer(checkpoint.side_files, checkpoint.config)


def test_a_file_of_zeros_is_an_unfinished_download(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    (folder / ONE).write_bytes(bytes(1 << 16))
    with pytest.raises(InputError, match="was not finished"):
        open_checkpoint(str(folder))


@pytest.mark.parametrize("length", [0x8B1F, 0x0280])
def test_a_header_whose_length_looks_like_another_format(tmp_path: Path, length: int) -> None:
    """gzip begins with 1f 8b, pickle with 80 02; so do headers of these lengths."""
    folder = write_checkpoint(tmp_path / "m")
    content = (folder / ONE).read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    if size > length:  # the shorter one: a file with fewer tensors
        name, entry = next(iter(item for item in header.items() if item[0] != "__metadata__"))
        first, last = entry["data_offsets"]
        header = {name: {**entry, "data_offsets": [0, last - first]}}
        data = content[8 + size + first : 8 + size + last]
    else:
        data = content[8 + size :]
    text = json.dumps(header).encode().ljust(length)
    (folder / ONE).write_bytes(length.to_bytes(8, "little") + text + data)
    if size > length:
        with pytest.raises(InputError, match="1 tensors, config"):
            open_checkpoint(str(folder))
    else:
        assert same_as(open_checkpoint(str(folder)))


def test_a_file_of_a_model_leads_to_its_folder(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    for name in (ONE, "config.json"):
        with pytest.raises(InputError, match="one file of a model") as caught:
            open_checkpoint(str(folder / name))
        assert str(folder) in caught.value.hint


def test_an_archive_is_to_be_unpacked(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    for kind in ("zip", "tar", "gztar"):
        archive = Path(shutil.make_archive(str(tmp_path / kind), kind, folder))
        with pytest.raises(InputError) as caught:
            open_checkpoint(str(archive))
        assert "unpack it" in caught.value.hint


def test_a_name_with_spaces_and_unicode(tmp_path: Path) -> None:
    assert same_as(open_checkpoint(str(write_checkpoint(tmp_path / "my models" / "模型 ü"))))


def test_a_read_only_folder_opens(tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "m")
    folder.chmod(0o555)
    try:
        assert same_as(open_checkpoint(str(folder)))
    finally:
        folder.chmod(0o755)
