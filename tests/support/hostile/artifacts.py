"""Artifacts that are run: GGUF, native files, ONNX graphs and what lies beside them."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from small_models import TEMPLATE, write_checkpoint

from dsconv.convert.files.json_file import parse_json
from dsconv.convert.open import open_checkpoint

from .gguf_documents import Document, mutate_gguf
from .message_mutations import mutate_message
from .mutations import damaged_bytes, mutate_json
from .subjects import SIZES, JsonFiles, quantized, read_all


class GgufFiles:
    def __init__(self, folder: Path) -> None:
        self.path = folder / "m.gguf"
        self.documents = []
        for name in ("llama", "qwen2"):
            write_small_gguf(self.path, name)
            self.documents.append(Document.read(self.path))

    def prepare(self, rng: random.Random) -> int:
        data = mutate_gguf(rng, rng.choice(self.documents))
        self.path.write_bytes(data)
        return len(data)

    def drive(self) -> None:
        checkpoint = open_checkpoint(str(self.path))
        read_all(checkpoint)
        parse_json(checkpoint.side_files["tokenizer.json"], "tokenizer.json")


def write_small_gguf(path: Path, arch: str) -> None:
    """A model of one layer that has most block formats; vocabulary of bytes or of pieces."""
    import gguf
    from gguf import GGMLQuantizationType as Type

    path.unlink(missing_ok=True)
    writer = gguf.GGUFWriter(path, arch)
    hidden, feed, heads = 32, 256, 2
    writer.add_block_count(1)
    writer.add_context_length(64)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(feed)
    writer.add_head_count(heads)
    writer.add_head_count_kv(1)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1e4)
    writer.add_custom_alignment(32)
    tokens = [*map(chr, range(33, 127)), "Ġ", "ab", "<s>", "</s>"]
    types = [1] * (len(tokens) - 2) + [3, 3]
    if arch == "llama":
        writer.add_tokenizer_model("llama")
        writer.add_token_scores([-float(index) for index in range(len(tokens))])
        writer.add_add_space_prefix(True)
        writer.add_rope_dimension_count(hidden // heads)
    else:
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre("qwen2")
        writer.add_token_merges(["a b"])
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(32)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_bos_token_id(len(tokens) - 2)
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template(TEMPLATE)
    rng = np.random.default_rng(3)

    def add(name: str, shape: tuple[int, ...], kind: Any = Type.F32) -> None:
        values = rng.standard_normal(shape, np.float32)
        if kind == Type.Q4_K:
            blocks = rng.integers(0, 60, (shape[0], shape[1] // 256 * 144), np.uint8)
            writer.add_tensor(name, blocks, raw_dtype=kind)
        elif kind == Type.F32:
            writer.add_tensor(name, values)
        else:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    add("token_embd.weight", (len(tokens), hidden), Type.Q8_0)
    add("output_norm.weight", (hidden,))
    add("output.weight", (len(tokens), hidden), Type.F16)
    for name, rows, columns, kind in (
        ("attn_q", hidden, hidden, Type.Q4_0),
        ("attn_k", hidden // heads, hidden, Type.Q5_1),
        ("attn_v", hidden // heads, hidden, Type.BF16),
        ("attn_output", hidden, hidden, Type.F16),
        ("ffn_gate", feed, hidden, Type.Q4_1),
        ("ffn_up", feed, hidden, Type.Q5_0),
        ("ffn_down", hidden, feed, Type.Q4_K),
    ):
        add(f"blk.0.{name}.weight", (rows, columns), kind)
        if arch == "qwen2" and name in ("attn_q", "attn_k", "attn_v"):
            add(f"blk.0.{name}.bias", (rows,))
    for name in ("attn_norm", "ffn_norm"):
        add(f"blk.0.{name}.weight", (hidden,))
    if arch == "llama":
        writer.add_tensor("rope_freqs.weight", np.ones(hidden // heads // 2, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class NativeFiles:
    """`.dsq`: fields of its header and of the texts in it, digits, bytes; what opens is run."""

    def __init__(self, folder: Path) -> None:
        from native_models import CASES, exported, native_checkpoint

        changes = {**CASES["qwen3 biases"], **SIZES, "intermediate_size": 48}
        model = native_checkpoint(folder / "m", **changes)
        ways = {"bits": 4, "embedding_bits": 4, "symmetric": False}
        checkpoint = open_checkpoint(str(quantized(model, folder / "q", **ways)))
        self.path = folder / "m.dsq"
        exported(checkpoint, self.path)
        self.data = self.path.read_bytes()

    def prepare(self, rng: random.Random) -> int:
        data = mutate_native(rng, self.data)
        self.path.write_bytes(data)
        return len(data)

    def drive(self) -> None:
        from dsconv.convert.formats.native.file import open_native_file
        from dsconv.runtime.sessions.native import NativeOptions, NativeSession

        opened = open_native_file(self.path)
        _ = opened.side_files, opened.header_is_intact(), opened.damaged_tensors()
        running = NativeSession(opened, NativeOptions(threads=1))
        tokens = [1, 2, 3]
        if running.context_length > 3 and running.vocabulary > 4:
            assert running.score(tokens).shape == (3, running.vocabulary)
            running.decode(4)


def mutate_native(rng: random.Random, data: bytes) -> bytes:
    length = int.from_bytes(data[:8], "little")
    kind = rng.random()
    if kind < 0.4:
        return damaged_bytes(rng, data, 8 + length)
    if kind < 0.6:
        digits = [i for i in range(8, 8 + length) if 48 <= data[i] < 58]
        result = bytearray(data)
        for _ in range(rng.randint(1, 3)):
            result[rng.choice(digits)] = rng.randrange(48, 58)
        return bytes(result)
    header = json.loads(data[8 : 8 + length])
    texts = header["__metadata__"]
    key = rng.choice(["program", "program", "matrices", "matrices", *texts])
    texts[key] = mutate_json(rng, texts[key], 2).decode("utf-8", "surrogateescape")
    encoded = json.dumps(header).encode()
    encoded += b" " * (-(8 + len(encoded)) % 64)
    return len(encoded).to_bytes(8, "little") + encoded + data[8 + length :]


class OnnxGraphs:
    """Object by object: nodes, attributes, initializers, where their bytes lie."""

    exports: tuple[Mapping[str, Any], ...] = (
        {"dialect": "contrib"},
        {"dialect": "std17"},
        {"dialect": "std24"},
    )

    def __init__(self, folder: Path) -> None:
        import onnx

        from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx

        model = write_checkpoint(folder / "m", **SIZES)
        checkpoint = open_checkpoint(str(quantized(model, folder / "q", bits=4)))
        self.folders = []
        for number, options in enumerate(self.exports):
            output = folder / f"export{number}"
            export_onnx(checkpoint, ExportOptions(**options), output)
            self.folders.append(output)
        self.models = [onnx.load(f / "model.onnx", load_external_data=False) for f in self.folders]
        self.checkpoints = [open_checkpoint(str(f)) for f in self.folders]
        self.number = 0
        self.compares = False

    def prepare(self, rng: random.Random) -> int:
        import onnx

        self.compares = rng.random() < 0.25  # slow: the graph is built once more
        self.number = rng.randrange(len(self.models))
        model = onnx.ModelProto()
        model.CopyFrom(self.models[self.number])
        mutate_message(rng, model)
        data: bytes = model.SerializeToString()
        (self.folders[self.number] / "model.onnx").write_bytes(data)
        return len(data)

    def drive(self) -> None:
        from dsconv.convert.formats.onnx.external_data import check_external_data, read_model
        from dsconv.convert.formats.onnx.graph_check import check_graph
        from dsconv.convert.targets.lint import lint
        from dsconv.convert.targets.table import TARGETS
        from dsconv.errors import DsconvError

        folder = self.folders[self.number]
        refusals = []
        for target in TARGETS.values():
            if target.rules is not None:
                try:
                    lint(folder / "model.onnx", target)
                except DsconvError as error:
                    refusals.append(error)
        model = read_model(folder / "model.onnx")
        check_external_data(folder / "model.onnx", model)
        if self.compares:
            check_graph(folder, self.checkpoints[self.number])
        if refusals:
            raise refusals[0]


class OnnxSessions(OnnxGraphs):
    """The same graphs, opened and run by ONNX Runtime. It has the memory of a small machine."""

    def drive(self) -> None:
        from dsconv.runtime.sessions.onnx import OnnxSession

        session = OnnxSession(self.folders[self.number], threads=1)
        assert session.score([1, 2, 3]).shape == (3, session.vocabulary)
        session.decode(4)


class FixedSessions(OnnxGraphs):
    """Graphs of fixed shapes; that of one token is changed."""

    exports = ({"dialect": "std21", "prefill_length": 4, "context_length": 16},)

    def drive(self) -> None:
        from dsconv.runtime.sessions.onnx_fixed import FixedOnnxSession

        session = FixedOnnxSession(self.folders[self.number], threads=1)
        assert session.score([1, 2, 3]).shape == (3, session.vocabulary)
        session.decode(4)


def genai_configs(folder: Path) -> JsonFiles:
    from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx

    model = write_checkpoint(folder / "m", **SIZES)
    export_onnx(open_checkpoint(str(model)), ExportOptions(), folder / "onnx")
    path = folder / "onnx" / "genai_config.json"

    def drive() -> None:
        from dsconv.runtime.sessions.onnx import read_graph_shape

        read_graph_shape(folder / "onnx")

    return JsonFiles(path, [path.read_text()], drive)
