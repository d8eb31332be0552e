"""Exported graphs, run by ONNX Runtime as they lie on the disk, against the torch reference."""

from __future__ import annotations

import collections
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from logits import largest_difference, mean_divergence, random_tokens
from numpy.typing import NDArray
from outputs import quantized
from places import SHARED_DATA, needs_shared_data
from reference_models import tiny_checkpoint, tiny_model

from dsconv.convert.checkpoint import jobs as jobs_module
from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.formats.onnx.export import DIALECTS, ExportOptions, export_onnx
from dsconv.convert.formats.onnx.names import DATA_FILE, GRAPH_FILE
from dsconv.convert.forward.torch_ops import TorchModel
from dsconv.convert.open import open_checkpoint
from dsconv.errors import OutputError, UsageError

TOLERANCE = 1e-4
PREFILL, STEPS = 16, 24
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama llama3 tied": ("llama", {"rope_parameters": LLAMA3, "tie_word_embeddings": True}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "llama odd": (
        "llama",
        {"hidden_size": 100, "intermediate_size": 90, "num_attention_heads": 5}
        | {"num_key_value_heads": 1, "head_dim": 20, "vocab_size": 161},
    ),
    "llama heads of 8": (
        "llama",
        {"hidden_size": 48, "intermediate_size": 80, "num_attention_heads": 6}
        | {"num_key_value_heads": 6, "vocab_size": 77},
    ),
    "qwen2": ("qwen2", {}),  # biases up to 150
    "qwen2 tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", {}),
    "qwen3 heads of 24, biases": ("qwen3", {"head_dim": 24, "attention_bias": True}),
}
WEIGHTS: dict[str, dict[str, Any] | None] = {
    "float": None,
    "4 bits": {},
    "4 bits asymmetric, embedding 4": {"symmetric": False, "embedding_bits": 4},
    "8 bits per row, embedding 8": {"bits": 8, "group_size": -1, "embedding_bits": 8},
    "4 bits per row, asymmetric": {"group_size": -1, "symmetric": False},
    "groups of 128, head 8, embedding 16": {"group_size": 128, "head_bits": 8},
}
EVERY_DIALECT = pytest.mark.parametrize("dialect", DIALECTS)
OWN_ORDER = ("std17", "std21", "std24")  # matrices are transposed into a file of the graph


@pytest.fixture(scope="module", params=MODELS)
def source(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    family, changes = MODELS[request.param]
    return tiny_checkpoint(tmp_path_factory.mktemp("model"), family, **changes)


@pytest.fixture(scope="module", params=WEIGHTS)
def checkpoint(
    request: pytest.FixtureRequest, source: Path, tmp_path_factory: pytest.TempPathFactory
) -> Checkpoint:
    options = WEIGHTS[request.param]
    if options is None:
        return open_checkpoint(str(source))
    return quantized(source, tmp_path_factory.mktemp("quantized") / "q", **options)


@pytest.fixture(scope="module")
def wanted(checkpoint: Checkpoint) -> NDArray[np.float32]:
    """The reference's logits of `tokens_for` the checkpoint."""
    return reference(checkpoint, tokens_for(checkpoint))


@pytest.fixture
def plain(tmp_path: Path) -> Checkpoint:
    """A quantized Qwen2 for what does not depend on the family."""
    tiny_checkpoint(tmp_path / "m", "qwen2")
    return quantized(tmp_path / "m", tmp_path / "q")


def export(checkpoint: Checkpoint, folder: Path, dialect: str, level: int = 0) -> Any:
    return export_onnx(checkpoint, ExportOptions(dialect, level), folder)


def run(folder: Path, tokens: list[int], prefill: int = PREFILL) -> NDArray[np.float32]:
    """Feed `prefill` tokens at once and the rest one by one -> logits of all."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # more would wait for one another, busily
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "0")
    session = onnxruntime.InferenceSession(
        str(folder / GRAPH_FILE), options, providers=["CPUExecutionProvider"]
    )
    inputs = {node.name: node for node in session.get_inputs()}
    outputs = [node.name for node in session.get_outputs()]
    cache = {
        name: np.zeros((1, node.shape[1], 0, node.shape[3]), np.float32)
        for name, node in inputs.items()
        if name.startswith("past_key_values")
    }
    logits, end = [], 0
    for part in [tokens[:prefill], *([token] for token in tokens[prefill:])]:
        start, end = end, end + len(part)
        feeds = cache | {
            "input_ids": np.array([part], np.int64),
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(start, end)[None],
        }
        results = dict(zip(outputs, session.run(None, {n: feeds[n] for n in inputs}), strict=True))
        logits.append(results.pop("logits")[0])
        cache = {name.replace("present", "past_key_values"): x for name, x in results.items()}
        assert all(x.shape[2] == end for x in cache.values())
    return np.concatenate(logits)


def reference(checkpoint: Checkpoint, tokens: list[int]) -> NDArray[np.float32]:
    logits: NDArray[np.float32] = TorchModel.load(checkpoint).forward(tokens).numpy()
    return logits


def tokens_for(checkpoint: Checkpoint) -> list[int]:
    return random_tokens(PREFILL + STEPS, checkpoint.decoder.config.vocab_size)


def nodes(folder: Path) -> collections.Counter[str]:
    model = onnx.load(str(folder / GRAPH_FILE), load_external_data=False)
    return collections.Counter(node.op_type for node in model.graph.node)


# ---------------------------------------------------------------- the same numbers


@EVERY_DIALECT
def test_logits_are_the_reference(
    checkpoint: Checkpoint, wanted: NDArray[np.float32], dialect: str, tmp_path: Path
) -> None:
    export(checkpoint, tmp_path / "onnx", dialect)
    found = run(tmp_path / "onnx", tokens_for(checkpoint))
    assert largest_difference(found, wanted) <= TOLERANCE


@pytest.mark.parametrize("dialect", ["std24", "std17"])
def test_standard_graphs_are_valid(checkpoint: Checkpoint, dialect: str, tmp_path: Path) -> None:
    """By the checker with shape inference; a copy, since onnx refuses hard-linked weights."""
    export_onnx(checkpoint, ExportOptions(dialect, copy=True), tmp_path / "onnx")
    onnx.checker.check_model(str(tmp_path / "onnx" / GRAPH_FILE), full_check=True)
    assert {node.domain for node in _graph(tmp_path / "onnx").node} == {""}


def _graph(folder: Path) -> Any:
    return onnx.load(str(folder / GRAPH_FILE), load_external_data=False).graph


@EVERY_DIALECT
def test_single_steps_from_the_start(plain: Checkpoint, dialect: str, tmp_path: Path) -> None:
    tokens = tokens_for(plain)
    export(plain, tmp_path / "onnx", dialect)
    found = run(tmp_path / "onnx", tokens, prefill=1)
    assert largest_difference(found, reference(plain, tokens)) <= TOLERANCE


@EVERY_DIALECT
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_weights(dialect: str, dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model("qwen3").to(dtype).save_pretrained(tmp_path / "m")
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    tokens = tokens_for(checkpoint)
    export(checkpoint, tmp_path / "onnx", dialect)
    wanted = reference(checkpoint, tokens)
    assert largest_difference(run(tmp_path / "onnx", tokens), wanted) <= TOLERANCE


@EVERY_DIALECT
def test_sharded_weights(dialect: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs_module, "MAX_SHARD_BYTES", 20_000)
    tiny_checkpoint(tmp_path / "m", "qwen2")
    checkpoint = quantized(tmp_path / "m", tmp_path / "q")
    assert len(checkpoint.source.files()) > 2
    tokens = tokens_for(checkpoint)
    export(checkpoint, tmp_path / "onnx", dialect)
    wanted = reference(checkpoint, tokens)
    assert largest_difference(run(tmp_path / "onnx", tokens), wanted) <= TOLERANCE


@needs_shared_data
@pytest.mark.parametrize(
    "options", [{}, {"embedding_bits": 8}, {"symmetric": False}, {"bits": 8}], ids=str
)
def test_int8_arithmetic_stays_close_on_a_real_model(
    options: dict[str, Any], tmp_path: Path
) -> None:
    """Accuracy level 4 rounds activations to 8 bits: other logits, nearly the same text."""
    checkpoint = quantized(SHARED_DATA / "models" / "tinystories-656k", tmp_path / "q", **options)
    entry = json.loads((SHARED_DATA / "golden" / "greedy_fp32.json").read_text())
    story = entry["tinystories-656k"][0]
    tokens = story["ids"] + story["greedy64"]
    export(checkpoint, tmp_path / "onnx", "contrib", 4)
    wanted, found = reference(checkpoint, tokens), run(tmp_path / "onnx", tokens)
    assert largest_difference(found, wanted) > TOLERANCE
    assert mean_divergence(wanted, found) <= 2e-3


# ---------------------------------------------------------------- the same bytes


def test_the_graph_is_built_of_few_large_operators(plain: Checkpoint, tmp_path: Path) -> None:
    """Query, key and value are one product, gate and up another; nothing is split for attention."""
    export(plain, tmp_path / "onnx", "contrib")
    layers, counts = plain.decoder.config.num_hidden_layers, nodes(tmp_path / "onnx")
    assert counts["MatMulNBits"] == 4 * layers + 1
    assert counts["GroupQueryAttention"] == layers
    assert counts["SkipSimplifiedLayerNormalization"] == 2 * layers
    assert counts["SimplifiedLayerNormalization"] == 1
    assert counts["Split"] == layers  # of gate and up
    assert counts["Add"] == counts["MatMul"] == 0


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_graph_says_what_it_is_made_of(tmp_path: Path, dialect: str) -> None:
    source = tiny_checkpoint(tmp_path / "source", "llama")
    smaller = quantized(source, tmp_path / "q", bits=4)
    export_onnx(smaller, ExportOptions(dialect), tmp_path / "onnx")
    model = onnx.load(tmp_path / "onnx" / GRAPH_FILE, load_external_data=False)
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert (model.producer_name, bool(model.producer_version)) == ("dsconv", True)
    assert facts["dsconv.source"] == "source"
    assert facts["dsconv.dialect"] == dialect
    assert facts["dsconv.model_type"] == "llama"
    assert facts["dsconv.quantization"].startswith("int4-g32: ")


def test_a_shared_quantized_matrix_is_one_range(tmp_path: Path) -> None:
    tiny_checkpoint(tmp_path / "m", "llama", tie_word_embeddings=True)
    checkpoint = quantized(tmp_path / "m", tmp_path / "q", embedding_bits=4)
    export(checkpoint, tmp_path / "onnx", "contrib")
    assert nodes(tmp_path / "onnx")["GatherBlockQuantized"] == 1
    ranges = [place for place in external(tmp_path / "onnx") if place[2] == 160 * 64 // 2]
    assert len(ranges) == 2  # as rows for the embedding, as blocks for the head
    assert len(set(ranges)) == 1


def external(folder: Path) -> list[tuple[str, int, int]]:
    """(file, offset, bytes) of every initializer outside the graph."""
    places = []
    for tensor in _graph(folder).initializer:
        entries = {entry.key: entry.value for entry in tensor.external_data}
        if entries:
            places.append((entries["location"], int(entries["offset"]), int(entries["length"])))
    return places


@pytest.mark.parametrize("options", [None, {}, {"bits": 8, "embedding_bits": 8}], ids=str)
def test_symmetric_weights_are_read_in_place(
    options: dict[str, Any] | None, tmp_path: Path
) -> None:
    tiny_checkpoint(tmp_path / "m", "qwen2")
    checkpoint = open_checkpoint(str(tmp_path / "m"))
    if options is not None:
        checkpoint = quantized(tmp_path / "m", tmp_path / "q", **options)
    result = export(checkpoint, tmp_path / "onnx", "contrib")
    weights = checkpoint.source.files()[0]
    assert not (tmp_path / "onnx" / DATA_FILE).exists()
    assert {location for location, _, _ in external(tmp_path / "onnx")} == {weights.name}
    assert os.stat(weights).st_ino == os.stat(tmp_path / "onnx" / weights.name).st_ino
    assert result.bytes_linked == weights.stat().st_size
    assert result.bytes_written < 100_000
    assert set(result.files) == {path.name for path in (tmp_path / "onnx").iterdir()}


@EVERY_DIALECT
def test_a_large_model_costs_its_graph_only(dialect: str, tmp_path: Path) -> None:
    """Weights of 20 MB in float: every dialect links them and writes kilobytes."""
    sizes = {"vocab_size": 4096, "hidden_size": 512, "intermediate_size": 1024, "head_dim": 64}
    tiny_checkpoint(tmp_path / "m", "llama", **sizes)
    result = export(open_checkpoint(str(tmp_path / "m")), tmp_path / "onnx", dialect)
    assert result.bytes_linked > 20_000_000
    assert result.bytes_written < 1_000_000


@EVERY_DIALECT
def test_copies_share_nothing_with_the_source(
    plain: Checkpoint, dialect: str, tmp_path: Path
) -> None:
    export_onnx(plain, ExportOptions(dialect, copy=True), tmp_path / "onnx")
    for path in (tmp_path / "onnx").iterdir():
        assert path.stat().st_nlink == 1
    whole = (tmp_path / "q" / "model.safetensors").read_bytes()
    if dialect in OWN_ORDER:
        assert (tmp_path / "onnx" / "model.safetensors").stat().st_size < len(whole)
    else:
        assert (tmp_path / "onnx" / "model.safetensors").read_bytes() == whole


@EVERY_DIALECT
def test_the_artifact_is_a_checkpoint_too(plain: Checkpoint, dialect: str, tmp_path: Path) -> None:
    """What was exported can be opened, computed and exported again, in any other dialect."""
    export(plain, tmp_path / "onnx", dialect)
    opened = open_checkpoint(str(tmp_path / "onnx"))
    tokens = tokens_for(plain)
    wanted = reference(plain, tokens)
    np.testing.assert_array_equal(reference(opened, tokens), wanted)
    export(opened, tmp_path / "again", "contrib")
    assert largest_difference(run(tmp_path / "again", tokens), wanted) <= TOLERANCE
    assert (tmp_path / "onnx" / "tokenizer.json").exists()


@EVERY_DIALECT
def test_the_same_input_gives_the_same_bytes(
    plain: Checkpoint, dialect: str, tmp_path: Path
) -> None:
    first, second = (export(plain, tmp_path / name, dialect) for name in ("a", "b"))
    assert first == second
    for name in first.files:
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_bad_options_and_outputs(plain: Checkpoint, tmp_path: Path) -> None:
    for bad in ({"dialect": "std99"}, {"accuracy_level": 5}, {"context_length": 0}):
        with pytest.raises(UsageError):
            ExportOptions(**bad)
    (tmp_path / "onnx").write_text("a file")
    with pytest.raises(OutputError, match="already exists"):
        export(plain, tmp_path / "onnx", "contrib")


def test_context_length_sizes_the_rotary_table(plain: Checkpoint, tmp_path: Path) -> None:
    export_onnx(plain, ExportOptions(context_length=64), tmp_path / "onnx")
    config = json.loads((tmp_path / "onnx" / "genai_config.json").read_text())
    assert config["model"]["context_length"] == config["search"]["max_length"] == 64
    with pytest.raises(Exception, match=r"cos_cache|rotary|seq|sequence"):
        run(tmp_path / "onnx", random_tokens(80, 160), prefill=80)
