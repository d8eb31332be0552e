"""The kinds of input that strangers control: how one is made wrong, and all that reads it."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from gguf_documents import Document, mutate_gguf
from message_mutations import mutate_message
from mutations import damaged_bytes, mutate_json, mutate_safetensors, mutate_text
from small_models import TEMPLATE, write_checkpoint

from dsconv.atomic import MANIFEST
from dsconv.convert.checkpoint.checkpoint import Checkpoint, open_checkpoint
from dsconv.convert.files.json_file import parse_json
from dsconv.convert.formats.ascend.description import DESCRIPTION
from dsconv.convert.formats.ascend.export import export_ascend
from dsconv.convert.quantize.plan import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint

SIZES: Mapping[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 264,
    "max_position_embeddings": 64,
}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
YARN = {
    "rope_type": "yarn",
    "factor": 8.0,
    "original_max_position_embeddings": 64,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.7,
    "mscale_all_dim": 0.7,
}
FAMILIES: tuple[Mapping[str, Any], ...] = (
    {"rope_scaling": YARN},
    {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "rope_scaling": LLAMA3,
        "attention_bias": True,
        "mlp_bias": True,
    },
    {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "head_dim": 32,
        "tie_word_embeddings": True,
        "layer_types": ["full_attention"],
        "rope_parameters": {"rope_theta": 1e6, "rope_type": "linear", "factor": 2.0},
    },
)


class Subject(Protocol):
    """One kind of input, with the files around it."""

    def prepare(self, rng: random.Random) -> int:
        """Write the next input -> its size in bytes."""
        ...

    def drive(self) -> None:
        """Read it in all the ways that dsconv has; raises DsconvError or nothing."""
        ...


def read_all(checkpoint: Checkpoint) -> None:
    """Rows of everything, and what the decoder's numbers come to."""
    for name, parameter in checkpoint.parameters.items():
        checkpoint.rows(name, 0, min(4, parameter.shape[0]))
        checkpoint.float_dtype(name)
    checkpoint.decoder.config.rope.frequencies()


class SafetensorsFiles:
    """Half of them the weights of a model, half a file of all dtypes."""

    def __init__(self, folder: Path) -> None:
        self.model = write_checkpoint(folder / "m", **SIZES)
        self.path = self.model / "model.safetensors"
        self.weights = self.path.read_bytes()
        self.loose = folder / "loose.safetensors"
        self.mixture = all_dtypes(self.loose)
        self.is_model = False

    def prepare(self, rng: random.Random) -> int:
        self.is_model = rng.random() < 0.5
        data = mutate_safetensors(rng, self.weights if self.is_model else self.mixture)
        (self.path if self.is_model else self.loose).write_bytes(data)
        return len(data)

    def drive(self) -> None:
        from dsconv.convert.checkpoint.manifest import hash_tensors
        from dsconv.convert.files.safetensors import read_metadata, read_rows, read_tensor_infos

        if self.is_model:
            read_all(open_checkpoint(str(self.model)))
            return
        read_metadata(self.loose)
        for info in read_tensor_infos(self.loose).values():
            rows = info.shape[0] if info.shape else 1
            read_rows(info, 0, min(rows, 2))
        hash_tensors(self.loose)


def all_dtypes(path: Path) -> bytes:
    from dsconv.convert.files.safetensors import DTYPES, PlannedTensor, SafetensorsWriter

    planned = [PlannedTensor(f"t.{dtype}", dtype, (2, 3)) for dtype in DTYPES]
    with SafetensorsWriter(path, planned, {"format": "pt", "note": "x"}) as writer:
        for tensor in planned:
            writer.write(tensor.name, np.zeros(tensor.nbytes, np.uint8))
    return path.read_bytes()


class JsonFiles:
    """One JSON file of a folder; `drive` is a function of the folder."""

    def __init__(
        self, path: Path, texts: list[str], drive: Callable[[], None], lines: bool = False
    ) -> None:
        self.path, self.texts, self._drive = path, texts, drive
        self.lines = lines

    def prepare(self, rng: random.Random) -> int:
        text = rng.choice(self.texts)
        if self.lines:
            lines = [line.encode() for line in text.splitlines()]
            place = rng.randrange(len(lines))
            lines[place] = mutate_json(rng, lines[place].decode())
            data = b"\n".join(lines) + b"\n"
        else:
            data = mutate_json(rng, text)
        self.path.write_bytes(data)
        return len(data)

    def drive(self) -> None:
        self._drive()


def indexes(folder: Path) -> JsonFiles:
    model = write_checkpoint(folder / "m", shards=3, **SIZES)
    path = model / "model.safetensors.index.json"
    return JsonFiles(path, [path.read_text()], lambda: read_all(open_checkpoint(str(model))))


def configs(folder: Path) -> Subject:
    """config.json of every family, with the weights that belong to it beside it."""

    class Configs:
        def __init__(self) -> None:
            self.models = [
                write_checkpoint(folder / f"m{index}", **{**SIZES, **family})
                for index, family in enumerate(FAMILIES)
            ]
            self.texts = [(model / "config.json").read_text() for model in self.models]
            self.model = self.models[0]

        def prepare(self, rng: random.Random) -> int:
            number = rng.randrange(len(self.models))
            self.model = self.models[number]
            data = mutate_json(rng, self.texts[number])
            (self.model / "config.json").write_bytes(data)
            return len(data)

        def drive(self) -> None:
            from dsconv.convert.checkpoint.checkpoint import eos_token_ids
            from dsconv.convert.config_only import open_announced

            announced = open_announced(self.model)
            announced.decoder.config.rope.frequencies()
            checkpoint = open_checkpoint(str(self.model))
            read_all(checkpoint)
            eos_token_ids(checkpoint)

    return Configs()


def quantizations(folder: Path) -> Subject:
    """config.json of quantized checkpoints, changed in its quantization_config."""

    class Quantizations:
        def __init__(self) -> None:
            model = write_checkpoint(folder / "m", **SIZES)
            ways: list[dict[str, Any]] = [
                {"bits": 4, "head_bits": 8, "embedding_bits": 4, "symmetric": False},
                {"bits": 8, "activations": "int8"},
                {"bits": 4, "scheme_name": "scale-min", "embedding_bits": 6},
            ]
            self.models = [quantized(model, folder / f"q{i}", **way) for i, way in enumerate(ways)]
            self.texts = [(model / "config.json").read_text() for model in self.models]
            self.model = self.models[0]

        def prepare(self, rng: random.Random) -> int:
            number = rng.randrange(len(self.models))
            self.model = self.models[number]
            content = json.loads(self.texts[number])
            part = mutate_json(rng, json.dumps(content.pop("quantization_config")))
            text = json.dumps(content)[:-1].encode() + b', "quantization_config": ' + part + b"}"
            (self.model / "config.json").write_bytes(text)
            return len(text)

        def drive(self) -> None:
            checkpoint = open_checkpoint(str(self.model))
            read_all(checkpoint)
            for name in checkpoint.parameters:
                if checkpoint.scheme(name) is not None:
                    checkpoint.quantized_rows(name, 0, 4)

    return Quantizations()


def descriptions(folder: Path) -> Subject:
    """quant_model_description.json of a folder for Ascend."""

    class Descriptions:
        def __init__(self) -> None:
            model = write_checkpoint(folder / "m", **SIZES)
            source = quantized(model, folder / "q", bits=8, activations="int8")
            self.folder = folder / "ascend"
            export_ascend(open_checkpoint(str(source)), self.folder)
            self.text = (self.folder / DESCRIPTION).read_text()

        def prepare(self, rng: random.Random) -> int:
            data = mutate_json(rng, self.text)
            (self.folder / DESCRIPTION).write_bytes(data)
            return len(data)

        def drive(self) -> None:
            read_all(open_checkpoint(str(self.folder)))

    return Descriptions()


def quantized(model: Path, output: Path, **options: Any) -> Path:
    way = QuantizeOptions(method="rtn", threads=1, **options)
    quantize_checkpoint(open_checkpoint(str(model)), way, output)
    return output


class SideFiles:
    """One of the files around a tokenizer; the others stay as they are."""

    def __init__(self, name: str, texts: list[str], model: Path) -> None:
        self.name, self.texts = name, texts
        checkpoint = open_checkpoint(str(model))
        self.files, self.config = dict(checkpoint.side_files), checkpoint.config

    def prepare(self, rng: random.Random) -> int:
        self.files[self.name] = mutate_json(rng, rng.choice(self.texts))
        return len(self.files[self.name])

    def drive(self) -> None:
        from dsconv.convert.checkpoint.checkpoint import generation_config
        from dsconv.runtime.generate.sampling import from_generation_config
        from dsconv.runtime.text.chat_template import chat_template
        from dsconv.runtime.text.tokenizer import StreamDecoder, TextTokenizer

        from_generation_config(generation_config(self.files))
        tokenizer = TextTokenizer(self.files, self.config)
        ids = tokenizer.encode(
            "Hello, wörld! 12 你好\n\t<s>x</s> aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!"
        )
        tokenizer.encode_prompt("a b")
        tokenizer.encode_chat("<s>a b")
        decoder = StreamDecoder(tokenizer)
        for token in [*ids, 0, 1, 2, 3]:
            decoder.push(token)
        decoder.finish()
        tokenizer.decode([0, 1, 2, 3, 10**6], skip_special=False)
        chat_template(self.files)


def tokenizers(folder: Path) -> SideFiles:
    model = write_checkpoint(folder / "m", **SIZES)
    return SideFiles("tokenizer.json", tokenizer_texts(model), model)


def tokenizer_texts(model: Path) -> list[str]:
    """Byte-level BPE, SentencePiece-like BPE, Unigram, WordPiece, WordLevel, with every stage."""
    byte_level = json.loads((model / "tokenizer.json").read_text())
    pattern = {"Regex": r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s+(?!\S)|\s+"}
    split = {"type": "Split", "pattern": pattern, "behavior": "Isolated", "invert": False}
    to_bytes = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    template = {
        "type": "TemplateProcessing",
        "single": [
            {"SpecialToken": {"id": "<s>", "type_id": 0}},
            {"Sequence": {"id": "A", "type_id": 0}},
        ],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [256], "tokens": ["<s>"]}},
    }
    byte_level["model"]["merges"] = [["a", "b"], ["H", "e"]]
    byte_level["model"]["vocab"] |= {"ab": 258, "He": 259}
    byte_level["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [split, to_bytes]}
    byte_level["post_processor"] = {"type": "Sequence", "processors": [to_bytes, template]}
    byte_level["normalizer"] = {"type": "NFC"}
    few = {"<unk>": 0, "<s>": 1, "</s>": 2, "▁": 3, "a": 4, "▁a": 5, "<0x0A>": 6, "b": 7}
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    pieces = {
        **byte_level,
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": "▁"},
                replace,
                {"type": "Strip", "strip_left": True, "strip_right": False},
                {"type": "Lowercase"},
                {
                    "type": "BertNormalizer",
                    "clean_text": True,
                    "handle_chinese_chars": True,
                    "strip_accents": None,
                    "lowercase": False,
                },
            ],
        },
        "pre_tokenizer": {
            "type": "Sequence",
            "pretokenizers": [
                {
                    "type": "Metaspace",
                    "replacement": "▁",
                    "prepend_scheme": "always",
                    "split": True,
                },
                {"type": "Digits", "individual_digits": True},
                {"type": "Punctuation", "behavior": "Isolated"},
                {"type": "CharDelimiterSplit", "delimiter": "-"},
            ],
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
        "post_processor": template,
        "added_tokens": [
            {
                "id": i,
                "content": t,
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": i == 0,
                "special": True,
            }
            for i, t in enumerate(["<unk>", "<s>", "</s>"])
        ],
        "truncation": {
            "direction": "Right",
            "max_length": 8,
            "strategy": "LongestFirst",
            "stride": 0,
        },
        "padding": {
            "strategy": {"Fixed": 4},
            "direction": "Right",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<unk>",
        },
    }
    models = (
        {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": few,
            "merges": ["▁ a"],
        },
        {
            "type": "Unigram",
            "unk_id": 0,
            "byte_fallback": True,
            "vocab": [[token, -float(index)] for token, index in few.items()],
        },
        {
            "type": "WordPiece",
            "unk_token": "<unk>",
            "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 100,
            "vocab": few,
        },
        {"type": "WordLevel", "unk_token": "<unk>", "vocab": few},
    )
    others = [{**pieces, "model": model} for model in models]
    return [json.dumps(content) for content in (byte_level, *others)]


def tokenizer_configs(folder: Path) -> SideFiles:
    model = write_checkpoint(folder / "m", **SIZES)
    content = json.loads((model / "tokenizer_config.json").read_text())
    marks = {"content": "</s>", "special": True, "lstrip": False}
    named = [{"name": "default", "template": TEMPLATE}, {"name": "tool_use", "template": "x"}]
    other = {**content, "eos_token": marks, "pad_token": None, "chat_template": named}
    return SideFiles("tokenizer_config.json", [json.dumps(content), json.dumps(other)], model)


def generation_configs(folder: Path) -> SideFiles:
    model = write_checkpoint(folder / "m", **SIZES)
    content = {
        "bos_token_id": 256,
        "eos_token_id": [257, 256],
        "do_sample": True,
        "temperature": 0.6,
        "top_p": 0.95,
        "top_k": 20,
        "repetition_penalty": 1.0,
        "transformers_version": "5.0.0",
    }
    return SideFiles("generation_config.json", [json.dumps(content)], model)


class Templates:
    """Chat templates of pieces that are taken from real ones."""

    PIECES = re.compile(r"\{%-?|-?%\}|\{\{-?|-?\}\}|\w+|\s+|.", re.DOTALL)
    TEXT = (
        "{%- set ns = namespace(text='', first=true) %}{{ bos_token }}"
        "{%- for message in messages %}{%- if message['role'] == 'user' %}"
        "{%- set ns.text = ns.text ~ message.content | trim * 3 %}{{ '<|user|>' + ns.text }}"
        "{%- elif not loop.last and message.content is not none %}{{ message|tojson(indent=2) }}"
        "{%- else %}{{ raise_exception('no ' + message.role) }}{%- endif %}{%- endfor %}"
        "{%- for i in range(99999) %}{{ i ** 2 % 7 }}{%- break %}{%- endfor %}"
        "{{ messages[0].content.split('a')[-1] | replace('b', 'c' * 9) | upper | join(', ') }}"
        "{%- macro f(x) %}{{ x[::-1] }}{{ f(x) if false }}{%- endmacro %}{{ f('abc') }}"
        "{{ 'x' | center(20) }}{{ [3, 1, 2] | sort | list }}{{ '%5d' | format(3) }}"
    )

    def __init__(self, folder: Path) -> None:
        self.text = ""

    def prepare(self, rng: random.Random) -> int:
        self.text = mutate_text(rng, rng.choice([self.TEXT, TEMPLATE]), self.PIECES)
        return len(self.text)

    def drive(self) -> None:
        from dsconv.runtime.text.chat_template import Message, render_chat

        messages = [Message("user", "a b"), Message("assistant", "c")]
        render_chat(self.text, messages, {"bos_token": "<s>"})


def manifests(folder: Path) -> JsonFiles:
    model = quantized(write_checkpoint(folder / "m", **SIZES), folder / "q", bits=4)
    path = model / MANIFEST
    original = path.read_text()

    def drive() -> None:
        from dsconv.runtime.sessions.onnx import accuracy_level_of
        from dsconv.runtime.verify.findings.integrity import can_be_vouched_for, integrity_findings

        findings = integrity_findings(model)
        assert findings or path.read_text() == original, "a changed manifest must be noticed"
        can_be_vouched_for(model)
        accuracy_level_of(model)

    return JsonFiles(path, [original], drive)


def journals(folder: Path) -> JsonFiles:
    from dsconv.convert.quantize.journal import JOURNAL, Journal

    purpose = {"kind": "quantize", "options": {"bits": 4}, "source": {"a": "b" * 64}}
    records = [{"modules": ["a", "b"]}, {"modules": ["c"]}]
    (folder / "j").mkdir()
    with Journal(folder / "j", purpose) as journal:
        for record in records:
            journal.append(record, [])
    path = folder / "j" / JOURNAL

    def drive() -> None:
        with Journal(folder / "j", purpose) as journal:
            for record in journal.records:
                _ = [str(module) for module in record["modules"]]

    return JsonFiles(path, [path.read_text()], drive, lines=True)


class Recipes:
    """TOML: words, numbers and marks out of place, or the value of a key replaced."""

    PIECES = re.compile(r'"[^"\n]*"|[\w.+-]+|\s|.')

    def __init__(self, folder: Path) -> None:
        from importlib import resources

        from dsconv.runtime.build.recipe import recipe_names

        self.path = folder / "r.toml"
        names = recipe_names()
        texts = resources.files("dsconv.recipes")
        self.texts = [texts.joinpath(name + ".toml").read_text("utf-8") for name in names[::5]]

    def prepare(self, rng: random.Random) -> int:
        text = rng.choice(self.texts)
        if rng.random() < 0.2:
            data = damaged_bytes(rng, text.encode())
        else:
            data = mutate_text(rng, text, self.PIECES).encode("utf-8", "surrogatepass")
        self.path.write_bytes(data)
        return len(data)

    def drive(self) -> None:
        from dsconv.runtime.build.recipe import load_recipe

        load_recipe(str(self.path)).check()


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


KINDS: Mapping[str, Callable[[Path], Subject]] = {
    "safetensors": SafetensorsFiles,
    "index": indexes,
    "config": configs,
    "quantization": quantizations,
    "ascend": descriptions,
    "tokenizer": tokenizers,
    "tokenizer-config": tokenizer_configs,
    "generation-config": generation_configs,
    "template": Templates,
    "manifest": manifests,
    "journal": journals,
    "recipe": Recipes,
    "gguf": GgufFiles,
    "native": NativeFiles,
    "onnx": OnnxGraphs,
    "onnx-session": OnnxSessions,
    "fixed-session": FixedSessions,
    "genai-config": genai_configs,
}
