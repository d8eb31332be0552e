"""The export for Ascend: what its readers look for is there, nothing was rounded again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_refused, call_main
from logits import largest_difference, random_tokens
from outputs import folder_hash, quantized
from reference_models import tiny_checkpoint
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from small_models import write_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.checkpoint.manifest import provenance_of
from dsconv.convert.formats.ascend.export import export_ascend
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError, UnsupportedError
from dsconv.runtime.verify.findings.integrity import integrity_findings

VOCABULARY = 161
SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 192, "vocab_size": VOCABULARY}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"tie_word_embeddings": True},
    "qwen2": {},
    "qwen3": {},
}
INT8: dict[str, Any] = {"bits": 8, "activations": "int8", "method": "rtn"}
TOKENS = random_tokens(24, VOCABULARY)
DESCRIPTION, INDEX = "quant_model_description.json", "quant_model_weights.safetensors.index.json"


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    for family, options in FAMILIES.items():
        tiny_checkpoint(folder / family, family, **SIZES, **options)
    return {family: folder / family for family in FAMILIES}


def exported(source: Path, folder: Path, **options: Any) -> tuple[Checkpoint, Path]:
    checkpoint = quantized(source, folder / "q", **{**INT8, **options})
    export_ascend(checkpoint, folder / "ascend")
    return checkpoint, folder / "ascend"


def tensors_in(folder: Path) -> dict[str, Any]:
    """As a reader that takes every file there is."""
    found: dict[str, Any] = {}
    for path in sorted(folder.glob("*.safetensors")):
        found |= load_file(path)
    return found


def read_json(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content


def linears(folder: Path) -> list[str]:
    """The matrices of the layers, from config.json alone."""
    layers = read_json(folder / "config.json")["num_hidden_layers"]
    parts = [f"self_attn.{name}_proj" for name in "qkvo"]
    parts += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
    return [f"model.layers.{layer}.{part}" for layer in range(layers) for part in parts]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_readers_look_for(sources: dict[str, Path], tmp_path: Path, family: str) -> None:
    _, folder = exported(sources[family], tmp_path)
    original = load_file(sources[family] / "model.safetensors")
    tensors, types = tensors_in(folder), read_json(folder / DESCRIPTION)
    assert "quantization_config" not in read_json(folder / "config.json")
    general = {key: types.pop(key) for key in list(types) if key not in tensors}
    assert general == {
        "version": "1.0.0",
        "model_quant_type": "W8A8_DYNAMIC",
        "metadata": {},
        "group_size": 0,
        "optional": {},
    }
    assert types.keys() == tensors.keys()
    expected = {}
    for module in linears(folder):
        weight = original.pop(f"{module}.weight").astype(np.float64)
        rows, columns = weight.shape
        kinds = {
            "weight": (np.int8, (rows, columns)),
            "weight_scale": (np.float32, (rows, 1)),
            "weight_offset": (np.float32, (rows, 1)),
        }
        for kind, (dtype, shape) in kinds.items():
            tensor = tensors[f"{module}.{kind}"]
            assert (tensor.dtype, tensor.shape) == (dtype, shape)
            expected[f"{module}.{kind}"] = "W8A8_DYNAMIC"
        assert not tensors[f"{module}.weight_offset"].any()
        scale = tensors[f"{module}.weight_scale"].astype(np.float64)
        error = np.abs(tensors[f"{module}.weight"] * scale - weight)
        assert (error <= scale / 2 * (1 + 1e-5)).all()
    # Everything else is float, under the name that the unquantized checkpoint has.
    for name, value in original.items():
        expected[name] = "FLOAT"
        tolerance = 5e-3 * np.abs(value).max() if name == "lm_head.weight" else 0  # int8 in groups
        assert np.abs(tensors[name].astype(np.float64) - value).max() <= tolerance
        if name.endswith(".bias"):
            assert tensors[name].dtype == np.float32
    head = {"lm_head.weight": "FLOAT"} if family == "llama" else {}  # parted from the embedding
    assert types == expected | head


@pytest.mark.parametrize("family", FAMILIES)
def test_the_index(sources: dict[str, Path], tmp_path: Path, family: str) -> None:
    _, folder = exported(sources[family], tmp_path)
    index = read_json(folder / INDEX)
    files = sorted(path.name for path in folder.glob("*.safetensors"))
    assert files == [f"quant_model_weights-0000{n}-of-00002.safetensors" for n in (1, 2)]
    assert sorted(set(index["weight_map"].values())) == files
    size = 0
    for file in files:
        with safe_open(folder / file, "np") as reader:
            names = set(reader.keys())
        assert names == {name for name, place in index["weight_map"].items() if place == file}
        size += sum(tensor.nbytes for tensor in load_file(folder / file).values())
    assert index["metadata"]["total_size"] == size
    assert not (folder / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("family", FAMILIES)
def test_the_same_function(sources: dict[str, Path], tmp_path: Path, family: str) -> None:
    checkpoint, folder = exported(sources[family], tmp_path, head_bits=16)
    before = TorchModel.load(checkpoint).forward(TOKENS).numpy()
    again = open_checkpoint(str(folder))
    assert all(again.rounds_inputs(f"{module}.weight") for module in linears(folder))
    assert largest_difference(before, TorchModel.load(again).forward(TOKENS).numpy()) == 0


def test_a_head_in_groups_becomes_float(sources: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = quantized(sources["qwen2"], tmp_path / "q", **INT8)
    result = export_ascend(checkpoint, tmp_path / "ascend")
    (note,) = result.notes
    assert note.startswith("lm_head: float16 instead of int8")
    assert "--head-bits 16" in note
    again = open_checkpoint(str(tmp_path / "ascend"))
    moved = largest_difference(checkpoint.rows("lm_head.weight"), again.rows("lm_head.weight"))
    assert 0 < moved < 1e-3


def test_files_without_changes_are_links(sources: dict[str, Path], tmp_path: Path) -> None:
    """Biases become float32, so only a family without any shares its weights."""
    checkpoint = quantized(sources["qwen3"], tmp_path / "q", **INT8, head_bits=16)
    weights = tmp_path / "q" / "model.safetensors"
    linked = export_ascend(checkpoint, tmp_path / "linked")
    first = "quant_model_weights-00001-of-00002.safetensors"
    assert (tmp_path / "linked" / first).samefile(weights)
    assert linked.bytes_linked >= weights.stat().st_size
    copied = export_ascend(checkpoint, tmp_path / "copied", copy=True)
    assert copied.bytes_linked == 0
    assert folder_hash(tmp_path / "copied") == folder_hash(tmp_path / "linked")


def test_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dsconv.convert.checkpoint import jobs as jobs_module

    source = tiny_checkpoint(tmp_path / "m", "qwen2", **SIZES)
    monkeypatch.setattr(jobs_module, "MAX_SHARD_BYTES", 100_000)
    checkpoint, folder = exported(source, tmp_path)
    shards = len(list((tmp_path / "q").glob("*.safetensors")))
    assert shards > 1
    assert len(list(folder.glob("*.safetensors"))) == shards + 1
    again = open_checkpoint(str(folder))
    for module in linears(folder):
        name = f"{module}.weight"
        assert largest_difference(checkpoint.rows(name), again.rows(name)) == 0


def test_biases_of_a_bfloat16_model(tmp_path: Path) -> None:
    _, folder = exported(write_checkpoint(tmp_path / "m"), tmp_path)
    with safe_open(folder / "quant_model_weights-00001-of-00002.safetensors", "np") as reader:
        dtypes = {name: reader.get_slice(name).get_dtype() for name in reader.keys()}  # noqa: SIM118
    biases = [name for name in dtypes if name.endswith(".bias")]
    assert biases
    assert {dtypes[name] for name in biases} == {"F32"}
    assert dtypes["model.norm.weight"] == "BF16"


def test_what_is_left_of_a_matrix_elsewhere_goes_too(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    """The head's codes become float in their own file; its scales lay in another."""
    quantized(sources["qwen3"], tmp_path / "q", **INT8)
    weights = load_file(tmp_path / "q" / "model.safetensors")
    alone = ("lm_head.weight_scale", "model.norm.weight")
    parts = {
        "model-1.safetensors": {name: weights.pop(name) for name in alone},
        "model-2.safetensors": weights,
    }
    (tmp_path / "q" / "model.safetensors").unlink()
    for name, tensors in parts.items():
        save_file(tensors, tmp_path / "q" / name)
    weight_map = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    index = {"metadata": {}, "weight_map": weight_map}
    (tmp_path / "q" / "model.safetensors.index.json").write_text(json.dumps(index))
    export_ascend(open_checkpoint(str(tmp_path / "q")), tmp_path / "ascend")
    assert "lm_head.weight_scale" not in tensors_in(tmp_path / "ascend")
    assert "lm_head.weight" in tensors_in(tmp_path / "ascend")
    open_checkpoint(str(tmp_path / "ascend"))


@pytest.mark.parametrize("options", [{"bits": 4, "method": "rtn"}, {"bits": 8, "method": "rtn"}])
def test_other_weights_are_refused(
    sources: dict[str, Path], tmp_path: Path, options: dict[str, Any]
) -> None:
    checkpoint = quantized(sources["qwen2"], tmp_path / "q", **options)
    with pytest.raises(UnsupportedError, match="int8 activations") as caught:
        export_ascend(checkpoint, tmp_path / "ascend")
    assert "--activations int8" in caught.value.hint
    assert not (tmp_path / "ascend").exists()


def test_an_unquantized_model_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="int8 activations"):
        export_ascend(open_checkpoint(str(sources["llama"])), tmp_path / "ascend")


# ---------------------------------------------------------------- folders of others


def change_description(key: str, value: object) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        types = read_json(folder / DESCRIPTION)
        if value is None:
            del types[key]
        else:
            types[key] = value
        (folder / DESCRIPTION).write_text(json.dumps(types), encoding="utf-8")

    return change


def set_an_offset(folder: Path) -> None:
    path = folder / "quant_model_weights-00002-of-00002.safetensors"
    tensors = load_file(path)
    tensors[f"{QUERY}_offset"][3, 0] = 1
    save_file(tensors, path)


def widen_an_offset(folder: Path) -> None:
    path = folder / "quant_model_weights-00002-of-00002.safetensors"
    tensors = load_file(path)
    tensors[f"{QUERY}_offset"] = np.zeros((128, 2), np.float32)
    save_file(tensors, path)


def drop_an_offset(folder: Path) -> None:
    path = folder / "quant_model_weights-00002-of-00002.safetensors"
    tensors = load_file(path)
    del tensors[f"{QUERY}_offset"]
    save_file(tensors, path)
    index = read_json(folder / INDEX)
    del index["weight_map"][f"{QUERY}_offset"]
    (folder / INDEX).write_text(json.dumps(index), encoding="utf-8")
    change_description(f"{QUERY}_offset", None)(folder)


QUERY = "model.layers.0.self_attn.q_proj.weight"
WRONG: dict[str, tuple[Callable[[Path], None], type[Exception], str]] = {
    "another type": (change_description(QUERY, "W4A8_DYNAMIC"), UnsupportedError, "W4A8"),
    "no string": (change_description(QUERY, 7), UnsupportedError, "q_proj"),
    "rotations": (change_description("metadata", {"quarot": {}}), UnsupportedError, "metadata"),
    "a cache": (change_description("kv_cache_type", "C8"), UnsupportedError, "kv_cache_type"),
    "not described": (change_description(QUERY, None), InputError, "q_proj"),
    "not there": (change_description("model.x.weight", "FLOAT"), InputError, "model.x"),
    "float after all": (change_description(QUERY, "FLOAT"), InputError, "I8"),
    "an offset": (set_an_offset, UnsupportedError, "offsets that are not 0"),
    "a wide offset": (widen_an_offset, InputError, r"expected F32 \[128, 1\]"),
    "no offset": (drop_an_offset, InputError, "weight_offset"),
}


@pytest.mark.parametrize("case", WRONG)
def test_folders_that_are_refused(sources: dict[str, Path], tmp_path: Path, case: str) -> None:
    change, error, words = WRONG[case]
    _, folder = exported(sources["qwen2"], tmp_path)
    change(folder)
    with pytest.raises(error, match=words):
        open_checkpoint(str(folder))


def test_what_decides_is_in_the_provenance(sources: dict[str, Path], tmp_path: Path) -> None:
    """Of an export that starts from such a folder."""
    _, folder = exported(sources["qwen2"], tmp_path, head_bits=16)
    hashes = provenance_of(open_checkpoint(str(folder))).files
    zeros = "quant_model_weights-00002-of-00002.safetensors"  # anything else in it is refused
    files = {path.name for path in folder.iterdir()} - {"dsconv.json", zeros}
    assert set(hashes) == files


# ---------------------------------------------------------------- the command


def test_the_command(
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantized(sources["qwen2"], tmp_path / "q", **INT8)
    quantized(sources["qwen2"], tmp_path / "int4", bits=4, method="rtn")

    def run(*arguments: object) -> Any:
        return call_main(monkeypatch, capsys, *arguments)

    export = ["export", tmp_path / "q", "--format", "ascend", "--json", "-o"]
    done = run(*export, tmp_path / "a")
    assert done.code == 0, done.err
    assert DESCRIPTION in done.json["files"]
    assert run(*export, tmp_path / "b", "--target", "cann").code == 0
    assert folder_hash(tmp_path / "a") == folder_hash(tmp_path / "b")
    assert_refused(run(*export, tmp_path / "a"), 6, "exists")
    assert_refused(run(*export, tmp_path / "c", "--target", "qnn"), 4, "qnn", "ascend")
    wrong = run("export", tmp_path / "int4", "--format", "ascend", "-o", tmp_path / "c")
    assert_refused(wrong, 4, "--activations int8")
    assert integrity_findings(tmp_path / "a") == ()
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"t{token}" for token in random_tokens(200, VOCABULARY)))
    verdict = run(
        *("verify", tmp_path / "a", "--reference", sources["qwen2"], "--text", text),
        *("--max-kl", "1", "--no-reference-cache", "--json"),
    )
    assert verdict.code == 0, verdict.err
    assert verdict.json["runtime"] == "torch"
    assert 0 < verdict.json["kl"]["mean"] < 1
