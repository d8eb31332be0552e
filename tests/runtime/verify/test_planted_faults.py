"""Faults planted in exported artifacts: each is found, and its place is named; the healthy artifact
gives no finding."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from places import SHARED_DATA, needs_shared_data
from safetensors.numpy import load_file, save_file
from small_models import LLAMA, QWEN3, TEMPLATE, VOCABULARY, write_checkpoint

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.files.safetensors import PlannedTensor, encode_header, read_rows
from dsconv.convert.formats.native.export import export_native
from dsconv.convert.formats.native.file import open_native_file
from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.inputs import GivenWindows
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import ProviderError
from dsconv.runtime.sessions import onnx as onnx_session
from dsconv.runtime.verify.findings.artifact_weights import NativeWeights, open_weights
from dsconv.runtime.verify.findings.integrity import integrity_findings
from dsconv.runtime.verify.findings.layers import LayerView, view_layers
from dsconv.runtime.verify.findings.tokenizer import tokenizer_findings

WINDOWS = [[int(t) for t in np.random.default_rng(i).integers(0, 256, 48)] for i in range(2)]
# More tokens than a matrix has columns: fewer leave weights free to go anywhere.
CALIBRATION = [
    [int(t) for t in np.random.default_rng(9 + i).integers(0, 256, 64)] for i in range(8)
]
LAYERS = 6
SIZES: dict[str, Any] = {"hidden_size": 128, "num_hidden_layers": LAYERS, "intermediate_size": 192}
METHODS: dict[str, dict[str, Any]] = {
    "rtn": {"bits": 4, "method": "rtn"},
    "search": {"bits": 4, "method": "search"},
    "asymmetric": {"bits": 4, "method": "search", "symmetric": False},
    "gptq": {"bits": 4, "method": "gptq"},
    "gptq alone": {"bits": 4, "method": "gptq", "prefix_correction": 0.0},
    "scale-min": {"bits": 4, "method": "gptq", "scheme_name": "scale-min"},
    "scale-min 3": {"bits": 3, "method": "search", "scheme_name": "scale-min"},
    "tuned": {"bits": 4, "method": "gptq", "tuning_epochs": 1},
    "int8": {"bits": 8, "method": "search", "embedding_bits": 8},
    "w8a8": {"bits": 8, "method": "gptq", "activations": "int8"},
}

Tensors = dict[str, Any]
Edit = Callable[[Tensors], None]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_checkpoint(tmp_path_factory.mktemp("faults") / "m", **SIZES)


@pytest.fixture(scope="module")
def reference(model: Path) -> Checkpoint:
    return open_checkpoint(str(model))


def quantize(source: Path, output: Path, **options: Any) -> Checkpoint:
    windows = CALIBRATION if options.get("method") == "gptq" else ()
    given = QuantizeOptions(**options)
    quantize_checkpoint(
        open_checkpoint(str(source)), given, output, preparation=GivenWindows(windows)
    )
    return open_checkpoint(str(output))


@pytest.fixture(scope="module")
def quantized_by(model: Path) -> Callable[[str], Path]:
    """A name of METHODS -> the model quantized so, once."""

    @cache
    def made(method: str) -> Path:
        output = model.parent / method
        quantize(model, output, **METHODS[method])
        return output

    return made


@pytest.fixture(scope="module")
def quantized(quantized_by: Callable[[str], Path]) -> Path:
    return quantized_by("search")


def view(artifact: Path, reference: Checkpoint) -> LayerView:
    return view_layers(str(artifact), reference, WINDOWS)


def places(artifact: Path, reference: Checkpoint) -> list[str]:
    return [finding.place for finding in view(artifact, reference).findings]


def export(quantized: Path, output: Path, kind: str) -> Path:
    """An ONNX folder of a dialect, or a `.dsq` file."""
    checkpoint = open_checkpoint(str(quantized))
    if kind == "dsq":
        output = output.with_suffix(".dsq")
        export_native(checkpoint, output)
    else:
        export_onnx(checkpoint, ExportOptions(kind, copy=True), output)
    return output


def edited(quantized: Path, output: Path, kind: str, edit: Edit) -> Path:
    """Exported from weights that were changed before, with hashes that fit: a faulty converter."""
    damaged = output.parent / f"{output.name}-q"
    shutil.copytree(quantized, damaged)
    edit_tensors(damaged, edit)
    return export(damaged, output, kind)


def edit_tensors(folder: Path, edit: Edit) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_json(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text("utf-8"))
    content.update(changes)
    path.write_text(json.dumps(content), "utf-8")


# --- healthy ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "llama", "qwen3"])
@pytest.mark.parametrize("method", METHODS)
def test_a_healthy_checkpoint_gives_no_finding(tmp_path: Path, family: str, method: str) -> None:
    changes = {"qwen2": {}, "llama": {**LLAMA, "tie_word_embeddings": True}, "qwen3": QWEN3}[family]
    source = write_checkpoint(tmp_path / "m", seed=3, **{**SIZES, **changes})
    checkpoint = quantize(source, tmp_path / "q", **METHODS[method])
    original = open_checkpoint(str(source))
    found = view(tmp_path / "q", original)
    assert found.findings == ()
    assert [layer.layer for layer in found.layers] == list(range(-1, LAYERS + 1))
    assert all(layer.sqnr_db > 3 for layer in found.layers)
    assert integrity_findings(tmp_path / "q") == ()
    assert tokens(checkpoint, original) == []


@pytest.mark.parametrize("kind", ["contrib", "std24", "std17", "dsq"])
@pytest.mark.parametrize("method", ["search", "asymmetric", "gptq", "int8"])
def test_a_healthy_export_gives_no_finding(
    tmp_path: Path,
    quantized_by: Callable[[str], Path],
    reference: Checkpoint,
    kind: str,
    method: str,
) -> None:
    artifact = export(quantized_by(method), tmp_path / "x", kind)
    assert places(artifact, reference) == []
    assert integrity_findings(artifact) == ()
    assert tokens(open_weights(str(artifact)), reference) == []


@pytest.mark.parametrize("method", ["scale-min", "scale-min 3", "tuned"])
def test_a_healthy_native_file_gives_no_finding(
    tmp_path: Path, quantized_by: Callable[[str], Path], reference: Checkpoint, method: str
) -> None:
    assert places(export(quantized_by(method), tmp_path / "x", "dsq"), reference) == []


def test_the_figures_of_a_layer_are_those_of_its_definition(
    tmp_path: Path, model: Path, reference: Checkpoint
) -> None:
    """Against transformers, layer by layer, from the same inputs."""
    import torch
    import transformers

    checkpoint = quantize(model, tmp_path / "q", bits=4, method="rtn")
    own = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    other = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    with torch.inference_mode():
        for name, parameter in other.named_parameters():
            parameter.copy_(torch.from_numpy(checkpoint.rows(name).copy()))
        lost, cosines = [], []
        for window in WINDOWS:
            states = own(torch.tensor([window]), output_hidden_states=True).hidden_states
            x = states[2]
            rope = own.model.rotary_emb(x, torch.arange(len(window))[None])
            outputs = [
                m.model.layers[2](x, position_embeddings=rope, attention_mask=None)
                for m in (own, other)
            ]
            y, z = (
                ((out[0] if isinstance(out, tuple) else out).reshape(x.shape) - x)[0].double()
                for out in outputs
            )
            lost.append(((y - z) ** 2).sum(-1) / (y**2).sum(-1))
            cosines.append(torch.cosine_similarity(y, z, dim=-1))
    found = view(tmp_path / "q", reference).layers[3]
    expected = -10 * np.log10(float(torch.cat(lost).mean()))
    assert found.name == "model.layers.2"
    assert found.sqnr_db == pytest.approx(expected, abs=0.01)
    assert found.cosine == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-5)
    weight = reference.rows("model.layers.2.mlp.up_proj.weight").astype(np.float64)
    error = weight - checkpoint.rows("model.layers.2.mlp.up_proj.weight")
    sqnr = 10 * np.log10((weight**2).sum() / (error**2).sum())
    assert found.matrices["model.layers.2.mlp.up_proj.weight"] == pytest.approx(sqnr, abs=0.01)


# --- weights ------------------------------------------------------------------------------------


def scales_up(tensors: Tensors) -> None:
    for name in tensors:
        if name.startswith("model.layers.3.") and name.endswith("weight_scale"):
            tensors[name] = (tensors[name].astype(np.float32) * 1.02).astype(np.float16)


def row_of_head_lost(tensors: Tensors) -> None:
    tensors["lm_head.weight_scale"][77] = 0


def heads_swapped(tensors: Tensors) -> None:
    """The first two of four query heads, of 32 rows each."""
    for kind in ("weight_packed", "weight_scale"):
        rows = tensors[f"model.layers.2.self_attn.q_proj.{kind}"]
        rows[:64] = np.concatenate([rows[32:64], rows[:32]])


def bias_changed(tensors: Tensors) -> None:
    tensors["model.layers.1.self_attn.v_proj.bias"][5] *= 2


def norm_changed(tensors: Tensors) -> None:
    tensors["model.layers.4.input_layernorm.weight"][9] *= 1.05


def output_heads_swapped(tensors: Tensors) -> None:
    """The columns that read the last two heads: 32 codes of 4 bits, 4 words, one group."""
    packed = tensors["model.layers.2.self_attn.o_proj.weight_packed"]
    packed[:, 8:] = np.concatenate([packed[:, 12:], packed[:, 8:12]], axis=1)
    scales = tensors["model.layers.2.self_attn.o_proj.weight_scale"]
    scales[:, 2:] = scales[:, [3, 2]]


WEIGHT_FAULTS: dict[str, tuple[Edit, str, str]] = {
    "scales": (scales_up, "model.layers.3", r"\+2.0 %"),
    "row of the head": (row_of_head_lost, "lm_head.weight", r"77 \(100%\)"),
    "heads": (
        heads_swapped,
        "model.layers.2.self_attn.q_proj.weight",
        "head 0 are those of head 1",
    ),
    "columns": (
        output_heads_swapped,
        "model.layers.2.self_attn.o_proj.weight",
        "head 2 are those of head 3",
    ),
    "bias": (bias_changed, "model.layers.1.self_attn.v_proj.bias", "1 of 64 values"),
    "norm": (norm_changed, "model.layers.4.input_layernorm.weight", "1 of 128 values"),
}


@pytest.mark.parametrize("kind", ["folder", "contrib", "std24", "dsq"])
@pytest.mark.parametrize("fault", WEIGHT_FAULTS)
def test_a_fault_in_the_weights_is_named(
    tmp_path: Path, quantized: Path, reference: Checkpoint, kind: str, fault: str
) -> None:
    edit, place, message = WEIGHT_FAULTS[fault]
    if kind == "folder":
        artifact = tmp_path / "q"
        shutil.copytree(quantized, artifact)
        edit_tensors(artifact, edit)
    else:
        artifact = edited(quantized, tmp_path / "x", kind, edit)
    found = view(artifact, reference).findings
    assert {finding.place for finding in found} == {place}
    assert any(re.search(message, finding.message) for finding in found)


@pytest.mark.parametrize("method", ["rtn", "gptq alone", "int8"])
@pytest.mark.parametrize("factor", [1.02, 0.98])
@pytest.mark.parametrize("layer", [0, 3, LAYERS - 1])
def test_scales_of_one_layer_whatever_the_method(
    tmp_path: Path,
    quantized_by: Callable[[str], Path],
    reference: Checkpoint,
    method: str,
    factor: float,
    layer: int,
) -> None:
    def edit(tensors: Tensors) -> None:
        for name in tensors:
            if name.startswith(f"model.layers.{layer}.") and name.endswith("weight_scale"):
                tensors[name] = (tensors[name].astype(np.float32) * factor).astype(np.float16)

    shutil.copytree(quantized_by(method), tmp_path / "q")
    edit_tensors(tmp_path / "q", edit)
    assert places(tmp_path / "q", reference) == [f"model.layers.{layer}"]


def test_the_layer_that_broke_has_the_worst_figure(
    tmp_path: Path, quantized: Path, reference: Checkpoint
) -> None:
    shutil.copytree(quantized, tmp_path / "q")
    edit_tensors(tmp_path / "q", heads_swapped)
    layers = view(tmp_path / "q", reference).layers
    assert min(layers, key=lambda layer: layer.sqnr_db).name == "model.layers.2"
    assert min(layers, key=lambda layer: layer.cosine).name == "model.layers.2"


# --- structure ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["contrib", "std24", "std17", "dsq"])
@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"rope_theta": 20000.0}, "rope.theta"),
        ({"rms_norm_eps": 1e-5}, "rms_norm_eps"),
    ],
)
def test_another_number_in_the_config(
    tmp_path: Path, quantized: Path, reference: Checkpoint, kind: str, change: Any, key: str
) -> None:
    """The artifact agrees with itself, not with the original."""
    shutil.copytree(quantized, tmp_path / "q")
    edit_json(tmp_path / "q" / "config.json", **change)
    found = view(export(tmp_path / "q", tmp_path / "x", kind), reference).findings
    assert [finding.place for finding in found] == ["config.json"]
    assert found[0].message.startswith(f"{key} is ")


@pytest.mark.parametrize("kind", ["contrib", "std24", "std17"])
def test_a_graph_with_another_theta(
    tmp_path: Path, quantized: Path, reference: Checkpoint, kind: str
) -> None:
    """config.json tells the truth, the graph computes something else."""
    good = export(quantized, tmp_path / "x", kind)
    shutil.copytree(quantized, tmp_path / "q")
    edit_json(tmp_path / "q" / "config.json", rope_theta=20000.0)
    lying = export(tmp_path / "q", tmp_path / "y", kind)
    shutil.copy(lying / "model.onnx", good / "model.onnx")
    found = view(good, reference).findings
    assert any(finding.place.startswith("rotary frequencies") for finding in found)


def test_a_program_with_another_theta(
    tmp_path: Path, quantized: Path, reference: Checkpoint
) -> None:
    file = export(quantized, tmp_path / "x", "dsq")
    rewrite_tensor(file, "rotary.0.frequencies", lambda values: values * np.float32(0.9))
    assert places(file, reference) == ["rotary.0.frequencies"]


def edit_graph(folder: Path, edit: Callable[[Any], None]) -> None:
    model = onnx.load(folder / "model.onnx", load_external_data=False)
    edit(model.graph)
    onnx.save(model, folder / "model.onnx")


def node_of(graph: Any, operator: str, index: int) -> Any:
    return [node for node in graph.node if node.op_type == operator][index]


def test_an_attribute_of_one_node(tmp_path: Path, quantized: Path, reference: Checkpoint) -> None:
    def edit(graph: Any) -> None:
        for attribute in node_of(graph, "GroupQueryAttention", 3).attribute:
            if attribute.name == "kv_num_heads":
                attribute.i = 4

    folder = export(quantized, tmp_path / "x", "contrib")
    edit_graph(folder, edit)
    (finding,) = view(folder, reference).findings
    assert finding.place == "GroupQueryAttention_4 (model.layers.3)"
    assert finding.message == "kv_num_heads is 4, expected 2"


def test_weights_read_from_another_place(
    tmp_path: Path, quantized: Path, reference: Checkpoint
) -> None:
    """The bytes are all there, but the graph takes those of another layer."""

    def edit(graph: Any) -> None:
        ranges = {t.name: t.external_data for t in graph.initializer if t.external_data}
        first, second = (
            next(n for n in ranges if n.startswith(f"model.layers.{i}.mlp.down_proj.weight_packed"))
            for i in (1, 2)
        )
        values = [[entry.value for entry in ranges[name]] for name in (second, first)]
        for name, value in zip((first, second), values, strict=True):
            for entry, text in zip(ranges[name], value, strict=True):
                entry.value = text

    folder = export(quantized, tmp_path / "x", "contrib")
    edit_graph(folder, edit)
    found = places(folder, reference)
    assert len(found) == 2
    assert all("mlp.down_proj.weight_packed" in place for place in found)


def test_codes_in_the_graphs_own_data(
    tmp_path: Path, quantized: Path, reference: Checkpoint
) -> None:
    folder = export(quantized, tmp_path / "x", "std24")
    path = folder / "model.onnx.data"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    (place,) = places(folder, reference)
    assert place.startswith("model.layers.")


# --- integrity ----------------------------------------------------------------------------------


def rewrite_tensor(file: Path, name: str, edit: Callable[[Any], Any]) -> None:
    info = open_native_file(file).tensors[name]
    values = edit(read_rows(info))
    with file.open("r+b") as stream:
        stream.seek(info.offset)
        stream.write(np.ascontiguousarray(values).tobytes())


def flip(path: Path, byte: int, bit: int) -> None:
    with path.open("r+b") as file:
        file.seek(byte)
        value = file.read(1)[0] ^ (1 << bit)
        file.seek(byte)
        file.write(bytes([value]))


def test_one_flipped_bit_anywhere_in_a_native_file(tmp_path: Path, quantized: Path) -> None:
    file = export(quantized, tmp_path / "x", "dsq")
    size = file.stat().st_size
    header = 8 + int.from_bytes(file.read_bytes()[:8], "little")
    rng = np.random.default_rng(0)
    inside = [*range(8), header - 1, *(int(i) for i in rng.integers(8, header, 60))]
    for byte in [*inside, size - 1, *(int(i) for i in rng.integers(header, size, 30))]:
        bit = int(rng.integers(0, 8))
        flip(file, byte, bit)
        assert integrity_findings(file), (byte, bit)
        flip(file, byte, bit)
    assert integrity_findings(file) == ()


def test_a_flipped_bit_names_the_tensor(tmp_path: Path, quantized: Path) -> None:
    name = "model.layers.2.mlp.up_proj.weight"
    file = export(quantized, tmp_path / "x", "dsq")
    flip(file, open_native_file(file).tensors[name].offset + 100, 3)
    assert [finding.place for finding in integrity_findings(file)] == [name]
    folder = export(quantized, tmp_path / "y", "contrib")
    source: Any = open_checkpoint(str(folder)).source
    stored = "model.layers.2.mlp.up_proj.weight_packed"
    flip(folder / "model.safetensors", source.infos[stored].offset + 100, 3)
    assert [finding.place for finding in integrity_findings(folder)] == [stored]


@pytest.mark.parametrize("kind", ["contrib", "std24"])
def test_one_flipped_bit_in_any_file_of_a_folder(
    tmp_path: Path, quantized: Path, kind: str
) -> None:
    folder = export(quantized, tmp_path / "x", kind)
    rng = np.random.default_rng(1)
    for path in sorted(folder.iterdir()):
        count = 60 if path.name == "dsconv.json" else 3
        for byte in map(int, rng.integers(0, path.stat().st_size, count)):
            bit = int(rng.integers(0, 8))
            flip(path, byte, bit)
            found = integrity_findings(folder)
            assert found, (path.name, byte, bit)
            if path.suffix not in (".safetensors", ".data"):  # of these the tensor is named
                assert found[0].place == path.name
            flip(path, byte, bit)
    assert integrity_findings(folder) == ()


def test_missing_and_extra_files(tmp_path: Path, quantized: Path) -> None:
    folder = export(quantized, tmp_path / "x", "contrib")
    (folder / "tokenizer_config.json").unlink()
    (folder / "extra.bin").write_bytes(b"1")
    (folder / "report.html").write_bytes(b"1")
    found = integrity_findings(folder, beside=("report.html",))
    assert [finding.place for finding in found] == ["tokenizer_config.json", "extra.bin"]


@pytest.mark.parametrize("content", [None, b"{", b"[]", b"{}", b'{"format_version": 1}'])
def test_a_manifest_that_says_nothing(
    tmp_path: Path, quantized: Path, content: bytes | None
) -> None:
    folder = export(quantized, tmp_path / "x", "contrib")
    (folder / "dsconv.json").unlink()
    if content is not None:
        (folder / "dsconv.json").write_bytes(content)
    assert [finding.place for finding in integrity_findings(folder)] == ["dsconv.json"]


def test_a_header_without_a_hash(tmp_path: Path, quantized: Path) -> None:
    """As written before there was one: nothing can be said for it."""
    file = export(quantized, tmp_path / "x", "dsq")
    native = open_native_file(file)
    data = file.read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    planned = [PlannedTensor(t.name, t.dtype, t.shape) for t in native.tensors.values()]
    old = encode_header(planned, replace(native.metadata, header_sha256="").encode())
    file.write_bytes(old + data[size:])
    assert [f.message for f in integrity_findings(file)] == ["its header has no hash"]


# --- tokenizer and template ---------------------------------------------------------------------


def tokens(artifact: Any, reference: Any) -> list[tuple[str, str]]:
    found = tokenizer_findings(
        artifact.side_files, reference.side_files, artifact.config, reference.config
    )
    return [(finding.place, finding.message) for finding in found]


def with_file(reference: Checkpoint, name: str, content: Any) -> Checkpoint:
    encoded = content.encode() if isinstance(content, str) else json.dumps(content).encode()
    return replace(reference, side_files={**reference.side_files, name: encoded})


def settings(reference: Checkpoint, **changes: Any) -> Checkpoint:
    content = json.loads(reference.side_files["tokenizer_config.json"])
    return with_file(reference, "tokenizer_config.json", {**content, **changes})


def test_files_written_differently_mean_the_same(reference: Checkpoint) -> None:
    content = json.loads(reference.side_files["tokenizer.json"])
    content["truncation"] = None
    assert tokens(with_file(reference, "tokenizer.json", content), reference) == []


def test_a_doubled_bos(reference: Checkpoint) -> None:
    """By the setting, by the template, by the tokenizer's own post-processing."""
    plain = settings(reference, add_bos_token=False)
    ((place, message),) = tokens(reference, plain)
    assert place == "tokenizer_config.json"
    assert "add_bos_token is True, the source has False" in message
    found = tokens(settings(reference, chat_template="{{ bos_token }}" + TEMPLATE), reference)
    assert {place for place, _ in found} == {"tokenizer_config.json"}
    assert found[-1][1] == "a conversation begins with 2 BOS, the source's with 1"
    content = json.loads(reference.side_files["tokenizer.json"])
    content["post_processor"] = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [
            {"Sequence": {"id": "A", "type_id": 0}},
            {"Sequence": {"id": "B", "type_id": 1}},
        ],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    found = tokens(with_file(reference, "tokenizer.json", content), reference)
    assert [place for place, _ in found] == ["tokenizer.json"]
    assert found[0][1].startswith("post_processor: ")


def test_an_old_chat_template(reference: Checkpoint) -> None:
    current = settings(reference, chat_template=TEMPLATE + "<think>\n")
    ((place, message),) = tokens(reference, current)
    assert place == "tokenizer_config.json"
    assert "assistant:'" in message
    assert "<think>" in message
    found = tokens(with_file(reference, "chat_template.jinja", "{{ bos_token }}1"), reference)
    assert [place for place, _ in found] == ["chat_template.jinja"]


def test_other_special_tokens(reference: Checkpoint) -> None:
    generation = {"bos_token_id": 256, "eos_token_id": [257, 10]}
    ((place, message),) = tokens(
        with_file(reference, "generation_config.json", generation), reference
    )
    assert place == "generation_config.json"
    assert "[257, 10]" in message
    found = tokens(settings(reference, eos_token="<s>"), reference)
    assert ("tokenizer_config.json", "eos_token is '<s>', the source has '</s>'") in found


@pytest.mark.parametrize("content", [None, b"{", b"[]"])
def test_a_broken_or_missing_tokenizer(reference: Checkpoint, content: bytes | None) -> None:
    files = {k: v for k, v in reference.side_files.items() if k != "tokenizer.json"}
    if content is not None:
        files["tokenizer.json"] = content
    found = tokens(replace(reference, side_files=files), reference)
    assert [place for place, _ in found] == ["tokenizer.json"]


@needs_shared_data
@pytest.mark.parametrize(
    "name",
    [
        "deepseek-r1-distill-qwen",
        pytest.param("deepseek-r1-distill-llama", marks=pytest.mark.slow),
    ],
)
def test_one_merge_removed_from_a_real_tokenizer(reference: Checkpoint, name: str) -> None:
    folder = SHARED_DATA / "tokenizers" / name
    names = ("tokenizer.json", "tokenizer_config.json")
    real = replace(reference, side_files={n: (folder / n).read_bytes() for n in names}, config={})
    assert tokens(real, real) == []
    content = json.loads(real.side_files["tokenizer.json"])
    lost = content["model"]["merges"].pop(1000)
    ((place, message),) = tokens(with_file(real, "tokenizer.json", content), real)
    assert place == "tokenizer.json"
    assert message.startswith("model: merge 1001 is ")
    assert str(lost)[:10] in message
    old = json.loads(real.side_files["tokenizer_config.json"])
    template = old["chat_template"].replace("<think>\\n", "")
    assert template != old["chat_template"]
    found = tokens(
        with_file(real, "tokenizer_config.json", {**old, "chat_template": template}), real
    )
    assert [place for place, _ in found] == ["tokenizer_config.json"]


# --- provider -----------------------------------------------------------------------------------


def test_a_graph_that_another_provider_would_run(tmp_path: Path, quantized: Path) -> None:
    """ONNX Runtime would fall back to the CPU in silence (test_providers.py has every way to it);
    the session is refused instead."""
    folder = export(quantized, tmp_path / "x", "contrib")
    with pytest.raises(ProviderError, match="CUDA"):
        onnx_session.OnnxSession(folder, "cuda")


# --- the inverse of packing -----------------------------------------------------------------------


def test_rows_of_a_native_file_are_those_of_the_checkpoint(tmp_path: Path, quantized: Path) -> None:
    checkpoint = open_checkpoint(str(quantized))
    weights = open_weights(str(export(quantized, tmp_path / "x", "dsq")))
    assert isinstance(weights, NativeWeights)
    for name in checkpoint.parameters:
        assert np.array_equal(weights.rows(name), checkpoint.rows(name)), name
    for start, stop in ((0, 1), (3, 40), (15, 17), (VOCABULARY - 5, VOCABULARY), (16, 32)):
        rows = weights.rows("lm_head.weight", start, stop)
        assert np.array_equal(rows, checkpoint.rows("lm_head.weight", start, stop))
