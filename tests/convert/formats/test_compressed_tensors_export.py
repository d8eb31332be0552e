"""The export to compressed-tensors: other readers load it, nothing was rounded again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from command_line import assert_refused, call_main
from logits import largest_difference, random_tokens
from outputs import folder_hash, quantized
from reference_models import tiny_checkpoint, tiny_model
from safetensors.numpy import load_file, save_file

from dsconv.convert.checkpoint import jobs as jobs_module
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.compressed_tensors.export import export_compressed_tensors
from dsconv.convert.formats.repack import RepackResult
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint
from dsconv.errors import OutputError, UnsupportedError
from dsconv.quant.integer import IntegerScheme

VOCABULARY = 161  # odd: packed zero points are padded
TABLE, HEAD = "model.embed_tokens", "lm_head"
SIZES: dict[str, Any] = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "vocab_size": VOCABULARY,
}
PARTS = [f"self_attn.{name}_proj" for name in "qkvo"]
PARTS += [f"mlp.{name}_proj" for name in ("gate", "up", "down")]
TOKENS = random_tokens(32, VOCABULARY)


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("sources")
    tiny_checkpoint(folder / "llama", "llama", tie_word_embeddings=True, **SIZES)
    tiny_checkpoint(folder / "qwen2", "qwen2", **SIZES)
    tiny_checkpoint(folder / "qwen3", "qwen3", **SIZES)
    return {family: folder / family for family in ("llama", "qwen2", "qwen3")}


def allocation(labels: list[str], **others: str) -> dict[str, str]:
    """The labels by turns for query, output, gate, down of both layers; `others` by module."""
    groups = [PARTS[:3], PARTS[3:4], PARTS[4:6], PARTS[6:]]
    chosen = {}
    for index in range(8):
        layer, group = divmod(index, 4)
        label = labels[index % len(labels)]
        chosen |= {f"model.layers.{layer}.{part}": label for part in groups[group]}
    return chosen | others


def export(checkpoint: Checkpoint, output: Path, **options: Any) -> RepackResult:
    return export_compressed_tensors(checkpoint, output, **options)


def in_transformers(folder: Path) -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def logits(model: Any) -> Any:
    with torch.inference_mode():
        return model(torch.tensor([TOKENS])).logits[0].numpy()


def difference_in_transformers(folder: Path) -> float:
    """Between their logits and ours on the same folder, and in their greedy text."""
    model, ours = in_transformers(folder), TorchModel.load(open_checkpoint(str(folder)))
    wanted = ours.forward(TOKENS).numpy()
    prompt = TOKENS[:7]
    with torch.inference_mode():
        made = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=6, eos_token_id=None
        )
    text = list(prompt)
    for _ in range(6):
        text.append(int(ours.forward(text)[-1].argmax()))
    assert made[0].tolist() == text
    return largest_difference(wanted, logits(model))


def weights_moved(before: Checkpoint, after: Checkpoint) -> dict[str, float]:
    """Parameter -> the largest change of a weight, where there is one."""
    moved = {}
    for name in after.parameters:
        old = name if name in before.parameters else f"{TABLE}.weight"
        change = largest_difference(before.rows(old), after.rows(name))
        if change:
            moved[name] = change
    return moved


def labels(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        name.removesuffix(".weight"): checkpoint.scheme(name)
        for name, parameter in checkpoint.parameters.items()
        if len(parameter.shape) == 2
    }


# ---------------------------------------------------------------- symmetric

SYMMETRIC = ["int4-g16", "int4-g32", "int4-g64", "int8-g32"]


@pytest.mark.parametrize("embedding", ["int4-g32", "int8-g32", "float"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_choice_of_bits_loads(
    family: str, embedding: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    head = {} if family == "llama" else {HEAD: "int8-g64"}
    chosen = allocation(SYMMETRIC, **{TABLE: embedding}, **head)
    before = quantized(sources[family], tmp_path / "q", allocation=chosen)
    result = export(before, tmp_path / "out")
    after = open_checkpoint(str(tmp_path / "out"))

    assert difference_in_transformers(tmp_path / "out") <= 1e-5
    # int4 scales are chosen so that float16 holds the products; int8 ones are not
    moved = weights_moved(before, after)
    assert set(moved) == ({f"{TABLE}.weight"} if embedding == "int8-g32" else set())
    if embedding != "float":  # else it stays as it is, float32
        nearest = before.rows(f"{TABLE}.weight").astype(np.float16)
        np.testing.assert_array_equal(after.rows(f"{TABLE}.weight"), nearest)
    assert "dequantize" not in after.config["quantization_config"]
    assert len(result.notes) == (0 if embedding == "float" else 1)

    wanted = labels(before) | {TABLE: None}
    if family == "llama" and embedding != "float":
        assert not after.decoder.config.tie_word_embeddings
        wanted[HEAD] = before.scheme(f"{TABLE}.weight")
    assert labels(after) == wanted


def test_codes_and_scales_are_the_very_bytes(sources: dict[str, Path], tmp_path: Path) -> None:
    chosen = allocation(SYMMETRIC, **{TABLE: "int8-g32"})
    export(quantized(sources["llama"], tmp_path / "q", allocation=chosen), tmp_path / "out")
    before = load_file(tmp_path / "q" / "model.safetensors")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert after.pop(f"{TABLE}.weight").dtype == np.float16
    renamed = {name.replace(TABLE, HEAD): value for name, value in before.items()}
    assert after.keys() == renamed.keys()
    for name, value in renamed.items():
        assert after[name].dtype == value.dtype
        assert after[name].tobytes() == value.tobytes()


# ---------------------------------------------------------------- zero points


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_a_choice_of_bits_with_zero_points_loads(
    family: str, sources: dict[str, Path], tmp_path: Path
) -> None:
    """All groups become the smallest one, with copies of their scales; int8 becomes float."""
    tied = family == "llama"
    head = {} if tied else {HEAD: "int4-g32-zero"}
    with_zeros = ["int4-g64-zero", "int4-g32-zero", "int4-g64-zero", "int8-g32-zero"]
    chosen = allocation(with_zeros, **{TABLE: "int4-g64-zero"}, **head)
    before = quantized(sources[family], tmp_path / "q", allocation=chosen)
    with pytest.raises(RuntimeError):
        in_transformers(tmp_path / "q")
    result = export(before, tmp_path / "out")
    after = open_checkpoint(str(tmp_path / "out"))
    assert difference_in_transformers(tmp_path / "out") <= 1e-5
    assert set(weights_moved(before, after)) == {
        f"model.layers.{layer}.mlp.down_proj.weight" for layer in range(2)
    }
    assert set(labels(after).values()) == {IntegerScheme(4, 32, False), None}
    assert after.scheme(f"{HEAD}.weight") == IntegerScheme(4, 32, False)
    old = load_file(tmp_path / "q" / "model.safetensors")
    new = load_file(tmp_path / "out" / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    np.testing.assert_array_equal(new[f"{name}.weight_packed"], old[f"{name}.weight_packed"])
    wanted = np.repeat(old[f"{name}.weight_scale"], 2, axis=1)
    np.testing.assert_array_equal(new[f"{name}.weight_scale"], wanted)
    assert any("layers.{0,1}.mlp.down_proj: float16 instead of int8-g32-zero" in note
               for note in result.notes)  # fmt: skip


def test_zero_points_are_folded_in_where_that_is_smallest(
    sources: dict[str, Path], tmp_path: Path
) -> None:
    """One int4 matrix with zero points among int8 ones without: int8, the same weights."""
    chosen = allocation(["int8-g32"], **{TABLE: "float", HEAD: "int4-g32-zero"})
    before = quantized(sources["qwen2"], tmp_path / "q", allocation=chosen)
    with pytest.raises(RuntimeError):
        in_transformers(tmp_path / "q")
    result = export(before, tmp_path / "out")
    after = open_checkpoint(str(tmp_path / "out"))
    assert difference_in_transformers(tmp_path / "out") <= 1e-5
    assert weights_moved(before, after) == {}
    assert after.scheme(f"{HEAD}.weight") == IntegerScheme(8, 32)
    assert len(result.notes) == 1
    assert result.notes[0].startswith("lm_head: int8-g32 instead of int4-g32-zero: ")


def test_transformers_would_read_other_weights(sources: dict[str, Path], tmp_path: Path) -> None:
    """It unpacks an int8 head by the scheme of the int4 body, without a word."""
    before = quantized(sources["qwen2"], tmp_path / "q", symmetric=False, head_bits=8)
    ours = TorchModel.load(before).forward(TOKENS).numpy()
    assert largest_difference(ours, logits(in_transformers(tmp_path / "q"))) > 1
    export(before, tmp_path / "out")
    assert difference_in_transformers(tmp_path / "out") <= 1e-5
    assert largest_difference(ours, logits(in_transformers(tmp_path / "out"))) <= 5e-3


@pytest.mark.parametrize(("bits", "limit"), [(4, 1e-5), (8, 2e-2)])
def test_groups_that_fell_back_become_one_size(bits: int, limit: float, tmp_path: Path) -> None:
    sizes = {"hidden_size": 96, "num_attention_heads": 6, "intermediate_size": 144}
    tiny_checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True, **sizes)
    options = {"bits": bits, "symmetric": False, "group_size": 128}
    before = quantized(tmp_path / "m", tmp_path / "q", **options)
    with pytest.raises(RuntimeError):
        in_transformers(tmp_path / "q")
    export(before, tmp_path / "out")
    after = open_checkpoint(str(tmp_path / "out"))
    assert weights_moved(before, after) == {}
    assert difference_in_transformers(tmp_path / "out") <= limit  # they unpack to float16


# ---------------------------------------------------------------- as it is


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bits": 8, "head_bits": 4},
        {"bits": 4, "head_bits": 16, "group_size": -1},
        {"bits": 4, "symmetric": False},
        {"bits": 4, "embedding_bits": 4},
        {"bits": 8, "activations": "int8", "method": "rtn"},
        {"bits": 8, "activations": "int8", "method": "rtn", "head_bits": 16},
    ],
    ids=str,
)
def test_what_loads_is_linked(
    options: dict[str, Any], sources: dict[str, Path], tmp_path: Path
) -> None:
    checkpoint = quantized(sources["qwen2"], tmp_path / "q", **options)
    result = export(checkpoint, tmp_path / "out")
    weights = tmp_path / "q" / "model.safetensors"
    assert (tmp_path / "out" / "model.safetensors").samefile(weights)
    assert result.bytes_linked == weights.stat().st_size
    assert result.notes == ()
    for name in ("config.json", "tokenizer.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "q" / name).read_bytes()
    assert np.isfinite(logits(in_transformers(tmp_path / "out"))).all()


def test_a_copy_is_a_copy(sources: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = quantized(sources["qwen2"], tmp_path / "q")
    result = export(checkpoint, tmp_path / "out", copy=True)
    copied, weights = (tmp_path / name / "model.safetensors" for name in ("out", "q"))
    assert not copied.samefile(weights)
    assert copied.read_bytes() == weights.read_bytes()
    total = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert (result.bytes_written, result.bytes_linked) == (total, 0)


def test_vllm_finds_the_head_by_name(sources: dict[str, Path], tmp_path: Path) -> None:
    """Its head is no Linear, so the class name alone would leave the head unquantized."""
    export(quantized(sources["qwen2"], tmp_path / "q"), tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["config_groups"]["group_0"]["targets"] == ["re:^lm_head$", "Linear"]


# ---------------------------------------------------------------- files


def test_only_shards_with_changes_are_written(
    sources: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs_module, "MAX_SHARD_BYTES", 60_000)
    chosen = allocation(SYMMETRIC, **{TABLE: "int8-g32", HEAD: "int8-g32"})
    before = quantized(sources["qwen2"], tmp_path / "q", allocation=chosen)
    told: list[int] = []
    result = export(before, tmp_path / "out", advance=told.append)
    shards = sorted(path.name for path in (tmp_path / "q").glob("model-*.safetensors"))
    assert sorted(path.name for path in (tmp_path / "out").glob("model-*.safetensors")) == shards
    pairs = {name: (tmp_path / "out" / name, tmp_path / "q" / name) for name in shards}
    linked = {name for name, (new, old) in pairs.items() if new.samefile(old)}
    assert linked == set(shards[1:])
    assert len(linked) > 2
    assert result.bytes_linked == sum(pairs[name][1].stat().st_size for name in linked)
    total = sum(path.stat().st_size for path in (tmp_path / "out").iterdir())
    assert result.bytes_written + result.bytes_linked == total
    assert set(result.files) == {path.name for path in (tmp_path / "out").iterdir()}

    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    held = {name: load_file(new) for name, (new, _) in pairs.items()}
    assert index["weight_map"] == {key: name for name, part in held.items() for key in part}
    size = sum(value.nbytes for part in held.values() for value in part.values())
    assert index["metadata"]["total_size"] == size
    assert sum(told) == before.parameter_count
    assert difference_in_transformers(tmp_path / "out") <= 1e-5


def test_a_matrix_may_lie_in_several_files(sources: dict[str, Path], tmp_path: Path) -> None:
    """As other tools split them: the codes here, the scales there."""
    chosen = allocation(SYMMETRIC, **{TABLE: "int8-g32"})
    quantized(sources["llama"], tmp_path / "q", allocation=chosen)
    tensors = load_file(tmp_path / "q" / "model.safetensors")
    (tmp_path / "q" / "model.safetensors").unlink()
    parts: dict[str, dict[str, Any]] = {"model-1.safetensors": {}, "model-2.safetensors": {}}
    for name, value in tensors.items():
        parts[f"model-{1 if name.endswith('packed') else 2}.safetensors"][name] = value
    for name, part in parts.items():
        save_file(part, tmp_path / "q" / name)
    weight_map = {key: name for name, part in parts.items() for key in part}
    index = tmp_path / "q" / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    export(open_checkpoint(str(tmp_path / "q")), tmp_path / "out")
    assert difference_in_transformers(tmp_path / "out") <= 1e-5
    kept = load_file(tmp_path / "out" / "model-2.safetensors")
    assert not any(name.startswith(TABLE) for name in kept)


def test_notes_count_the_bytes(sources: dict[str, Path], tmp_path: Path) -> None:
    with_zeros = ["int4-g16-zero", "int4-g32-zero", "int8-g32-zero"]
    chosen = allocation(with_zeros, **{TABLE: "int8-g32-zero"})
    before = quantized(sources["llama"], tmp_path / "q", allocation=chosen)
    result = export(before, tmp_path / "out")
    costs = [int(note.split("; ")[1].split()[0].replace(",", "")) for note in result.notes]
    sizes = []
    for name in ("q", "out"):
        tensors = load_file(tmp_path / name / "model.safetensors")
        sizes.append(sum(v.nbytes for k, v in tensors.items() if not k.endswith("_shape")))
    assert sum(costs) == sizes[1] - sizes[0]
    assert result.notes[0].startswith("model.embed_tokens: float16 instead of int8-g32-zero: ")


def test_the_manifest_knows_every_file(sources: dict[str, Path], tmp_path: Path) -> None:
    before = quantized(sources["llama"], tmp_path / "q", embedding_bits=8)
    result = export(before, tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "dsconv.json").read_text())
    assert set(manifest["sha256"]) == set(result.files) - {"dsconv.json"}
    assert manifest["kind"] == "compressed-tensors"
    assert manifest["facts"]["notes"] == list(result.notes)
    assert str(tmp_path) not in json.dumps(manifest)
    export(before, tmp_path / "again", copy=True)
    assert folder_hash(tmp_path / "again") == folder_hash(tmp_path / "out")


def test_weights_beyond_float16_are_kept_in_float32(tmp_path: Path) -> None:
    model = tiny_model("llama", tie_word_embeddings=True)
    with torch.no_grad():
        model.model.embed_tokens.weight[3, :2] = torch.tensor([80_000.0, -70_000.0])
    model.save_pretrained(tmp_path / "m")
    before = quantized(tmp_path / "m", tmp_path / "q", embedding_bits=8)
    result = export(before, tmp_path / "out")
    after = open_checkpoint(str(tmp_path / "out"))
    assert weights_moved(before, after) == {}
    assert after.source.dtype(f"{TABLE}.weight") == "F32"
    assert "float32 instead of int8-g32" in result.notes[0]


# ---------------------------------------------------------------- command line and failures


def test_the_command(
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From a hand-written recipe to a folder that loads."""
    recipe = tmp_path / "recipe.json"
    chosen = allocation(SYMMETRIC, **{TABLE: "int8-g32"})
    recipe.write_text(json.dumps({"recipe": {"allocation": chosen}}))
    made = call_main(
        monkeypatch, capsys, "quantize", sources["llama"], "-o", tmp_path / "q", "--recipe", recipe
    )
    assert made.code == 0, made.err
    arguments = ["export", tmp_path / "q", "--format", "compressed-tensors", "-o"]
    outcome = call_main(monkeypatch, capsys, *arguments, tmp_path / "out", "--json")
    assert outcome.code == 0, outcome.err
    assert set(outcome.json) == {
        "output", "bytes_written", "bytes_linked", "files", "notes", "seconds", "peak_rss_bytes",
    }  # fmt: skip
    assert outcome.json["output"] == str(tmp_path / "out")
    assert difference_in_transformers(tmp_path / "out") <= 1e-5
    refused = call_main(monkeypatch, capsys, *arguments, tmp_path / "out")
    assert_refused(refused, 6, "already exists", "--overwrite")
    again = call_main(monkeypatch, capsys, *arguments, tmp_path / "out", "--overwrite")
    assert again.code == 0, again.err
    assert "note: model.embed_tokens: float16 instead of int8-g32" in again.err
    inside = call_main(monkeypatch, capsys, *arguments, tmp_path / "q", "--overwrite")
    assert_refused(inside, 2, "holds the input")


def test_scale_and_minimum_is_refused(
    sources: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    quantized(sources["llama"], tmp_path / "q", scheme_name="scale-min")
    arguments = ["export", tmp_path / "q", "--format", "compressed-tensors", "-o", tmp_path / "out"]
    outcome = call_main(monkeypatch, capsys, *arguments)
    assert_refused(outcome, 4, "scale and minimum", "--format gguf", "--scheme integer")
    assert not (tmp_path / "out").exists()


def test_an_unquantized_checkpoint_is_refused(sources: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="is not quantized") as refused:
        export(open_checkpoint(str(sources["llama"])), tmp_path / "out")
    assert "dsconv quantize" in refused.value.hint
    assert not (tmp_path / "out").exists()


def test_an_existing_output_is_left_alone(sources: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = quantized(sources["llama"], tmp_path / "q")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep me")
    with pytest.raises(OutputError, match="already exists"):
        export(checkpoint, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "mine.txt").read_text() == "keep me"


def test_a_failure_leaves_nothing_behind(sources: dict[str, Path], tmp_path: Path) -> None:
    checkpoint = quantized(sources["llama"], tmp_path / "q", embedding_bits=8)
    weights = tmp_path / "q" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-2000])
    with pytest.raises(Exception, match="ends too early"):
        export(checkpoint, tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"q"}
