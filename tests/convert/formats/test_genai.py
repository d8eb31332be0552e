"""onnxruntime-genai, an independent client: it loads what we export and rounds as we do."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime_genai
import pytest
import torch
from logits import random_tokens
from numpy.typing import NDArray
from outputs import quantized
from places import SHARED_DATA, needs_shared_data
from reference_models import tiny_checkpoint, tiny_model, write_tokenizer

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.onnx.export import DIALECTS, ExportOptions, export_onnx
from dsconv.convert.forward.torch_ops import KeyValueCache, TorchModel
from dsconv.convert.open import open_checkpoint
from dsconv.convert.targets.choice import choose_options
from dsconv.convert.targets.table import find_target
from dsconv.runtime.sessions.onnx import OnnxSession

COUNT = 24
SEEDS = range(3)
# More threads would wait for one another, busily, in models as small as these.
ONE_THREAD = '{"model": {"decoder": {"session_options": {"intra_op_num_threads": 1}}}}'
FAMILIES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"tie_word_embeddings": True}),
    ("qwen2", {}),
    ("qwen3", {}),
    ("qwen3", {"head_dim": 24}),  # no GroupQueryAttention for such heads
]


def greedy_by_genai(folder: Path, prompt: list[int], count: int) -> list[int]:
    config = onnxruntime_genai.Config(str(folder))
    config.overlay(ONE_THREAD)
    model = onnxruntime_genai.Model(config)
    params = onnxruntime_genai.GeneratorParams(model)
    params.set_search_options(do_sample=False, max_length=len(prompt) + count, min_length=0)
    generator = onnxruntime_genai.Generator(model, params)
    generator.append_tokens(np.array([prompt], np.int32))
    tokens: list[int] = []
    while len(tokens) < count and not generator.is_done():
        generator.generate_next_token()
        tokens.append(int(generator.get_next_tokens()[0]))
    return tokens


def greedy_by_session(folder: Path, prompt: list[int], count: int) -> list[int]:
    session = OnnxSession(folder, threads=1)
    tokens = [int(session.prefill(prompt).argmax())]
    while len(tokens) < count:
        tokens.append(int(session.decode(tokens[-1]).argmax()))
    return tokens


def greedy_by_torch(checkpoint: Checkpoint, prompt: list[int], count: int) -> list[int]:
    model, cache = TorchModel.load(checkpoint), KeyValueCache()
    tokens = [int(model.forward(prompt, cache)[-1].argmax())]
    while len(tokens) < count:
        tokens.append(int(model.forward([tokens[-1]], cache)[-1].argmax()))
    return tokens


def until_end(tokens: list[int], eos: int = 2) -> list[int]:
    return tokens[: tokens.index(eos) + 1] if eos in tokens else tokens


# ---------------------------------------------------------------- the same tokens


@pytest.fixture(scope="module", params=FAMILIES, ids=str)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, changes = request.param
    return tiny_checkpoint(tmp_path_factory.mktemp("genai") / "m", family, **changes)


@pytest.fixture(
    scope="module", params=[None, {}, {"symmetric": False, "embedding_bits": 4}], ids=str
)
def checkpoint(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    if request.param is None:
        return open_checkpoint(str(source))
    return quantized(source, tmp_path_factory.mktemp("genai") / "q", **request.param)


@pytest.fixture(scope="module")
def wanted(checkpoint: Checkpoint) -> list[list[int]]:
    """What torch writes after the prompt of every seed."""
    return [greedy_by_torch(checkpoint, random_tokens(9, 160, seed), COUNT) for seed in SEEDS]


@pytest.mark.parametrize("dialect", DIALECTS)
def test_greedy_tokens_are_the_same_everywhere(
    checkpoint: Checkpoint, wanted: list[list[int]], dialect: str, tmp_path: Path
) -> None:
    export_onnx(checkpoint, ExportOptions(dialect, accuracy_level=0), tmp_path / "onnx")
    for seed in SEEDS:
        prompt = random_tokens(9, 160, seed)
        assert greedy_by_session(tmp_path / "onnx", prompt, COUNT) == wanted[seed]
        assert greedy_by_genai(tmp_path / "onnx", prompt, COUNT) == until_end(wanted[seed])


@needs_shared_data
@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("level", [0, 4])
def test_a_real_model_tells_the_same_story(dialect: str, level: int, tmp_path: Path) -> None:
    folder = SHARED_DATA / "models" / "tinystories-656k"
    export_onnx(open_checkpoint(str(folder)), ExportOptions(dialect, level), tmp_path / "float")
    golden = json.loads((SHARED_DATA / "golden" / "greedy_fp32.json").read_text())
    for entry in golden["tinystories-656k"]:
        found = greedy_by_genai(tmp_path / "float", entry["ids"], len(entry["greedy64"]))
        assert found == entry["greedy64"]
    checkpoint = quantized(folder, tmp_path / "q", embedding_bits=8)
    export_onnx(checkpoint, ExportOptions(dialect, level), tmp_path / "onnx")
    prompt = golden["tinystories-656k"][0]["ids"]
    found = greedy_by_genai(tmp_path / "onnx", prompt, 40)
    assert found == greedy_by_session(tmp_path / "onnx", prompt, 40)
    if level == 0:
        assert found == greedy_by_torch(checkpoint, prompt, 40)


def test_its_tokenizer_reads_what_was_carried_along(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "m", "qwen2")
    export_onnx(open_checkpoint(str(tmp_path / "m")), ExportOptions(), tmp_path / "onnx")
    config = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    assert config["model"]["eos_token_id"] == [2]
    assert config["model"]["bos_token_id"] == 1
    assert (tmp_path / "onnx" / "tokenizer.json").exists()


# ---------------------------------------------------------------- the same rounding


SIZES: dict[str, Any] = {"hidden_size": 128, "intermediate_size": 256}


def _with_ties(model: Any) -> Any:
    """Weights rounded as in bfloat16 files and coarser: ties, equal magnitudes, empty groups."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(parameter.bfloat16().float())
            if "mlp" in name:
                parameter.copy_((parameter * 32).round() / 32)
        model.lm_head.weight[:4] = 0
        model.lm_head.weight[4:8] = 0.0123
    return model


@pytest.fixture(scope="module", params=[4, 8], ids=["4bits", "8bits"])
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint (m), quantized by onnxruntime-genai's own builder (theirs) and by us (q)."""
    folder, bits = tmp_path_factory.mktemp("built"), request.param
    _with_ties(tiny_model("qwen2", **SIZES)).save_pretrained(folder / "m")
    write_tokenizer(folder / "m", 160)
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder"]
    command += ["-i", "m", "-o", "theirs", "-p", f"int{bits}", "-e", "cpu", "-c", "cache"]
    command += ["--extra_options", "int4_accuracy_level=4", "int4_block_size=32"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    quantized(folder / "m", folder / "q", method="rtn", bits=bits)
    return folder


def their_matrices(folder: Path) -> dict[str, tuple[NDArray[Any], NDArray[Any]]]:
    """Module name in the checkpoint's words -> packed codes [out, bytes], scales [out, groups]."""
    graph = onnx.load(str(folder / "model.onnx")).graph
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    matrices = {}
    for node in graph.node:
        if node.op_type == "MatMulNBits":
            codes, scales = (arrays[name] for name in node.input[1:3])
            name = node.input[1].rpartition(".MatMul.")[0].replace(".attn.", ".self_attn.")
            matrices[name] = codes.reshape(len(codes), -1), scales.reshape(len(codes), -1)
    return matrices


def our_matrix(checkpoint: Checkpoint, modules: list[str]) -> tuple[NDArray[Any], NDArray[Any]]:
    rows = checkpoint.source.rows
    codes = [np.ascontiguousarray(rows(f"{m}.weight_packed")).view(np.uint8) for m in modules]
    return np.concatenate(codes), np.concatenate([rows(f"{m}.weight_scale") for m in modules])


def test_plain_rounding_is_that_of_their_builder(built: Path) -> None:
    """Every code is the same; scales are, once rounded to float16."""
    checkpoint = open_checkpoint(str(built / "q"))
    theirs = their_matrices(built / "theirs")
    layers = checkpoint.decoder.config.num_hidden_layers
    assert len(theirs) == 5 * layers + 1
    for name, (codes, scales) in theirs.items():
        modules = [name]
        if name.endswith("qkv_proj"):
            modules = [name.replace("qkv_proj", f"{part}_proj") for part in "qkv"]
        our_codes, our_scales = our_matrix(checkpoint, modules)
        np.testing.assert_array_equal(our_codes, codes, err_msg=name)
        np.testing.assert_array_equal(our_scales, scales.astype(np.float16), err_msg=name)


def test_their_graph_and_ours_say_the_same(built: Path) -> None:
    """Same codes and nearly the same scales: the greedy text of both graphs agrees."""
    checkpoint = open_checkpoint(str(built / "q"))
    export_onnx(checkpoint, ExportOptions(accuracy_level=4), built / "onnx")
    agreed = 0
    for seed in range(4):
        prompt = random_tokens(9, 160, seed)
        ours = greedy_by_genai(built / "onnx", prompt, 8)
        agreed += ours == greedy_by_genai(built / "theirs", prompt, 8)
    assert agreed >= 3


@pytest.mark.parametrize(("target", "providers"), [("cpu", []), ("cuda", ["cuda"])])
def test_the_provider_of_the_target(target: str, providers: list[str], tmp_path: Path) -> None:
    """The library itself asks for it: without its CUDA build the folder for cuda is refused."""
    source = quantized(tiny_checkpoint(tmp_path / "m", "llama"), tmp_path / "q")
    export_onnx(source, choose_options(find_target(target), source), tmp_path / "x")
    config = json.loads((tmp_path / "x" / "genai_config.json").read_text("utf-8"))
    asked = config["model"]["decoder"]["session_options"]["provider_options"]
    assert [name for options in asked for name in options] == providers
    if providers:
        with pytest.raises(Exception, match=r"(?i)cuda"):
            onnxruntime_genai.Model(str(tmp_path / "x"))
    else:
        onnxruntime_genai.Model(str(tmp_path / "x"))
