"""Files around the weights that say how text becomes tokens and how it is sampled."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from small_models import TEMPLATE, write_checkpoint

from dsconv.convert.open import open_checkpoint

from .mutations import mutate_json, mutate_text
from .subjects import SIZES


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
        from dsconv.runtime.generate.model_settings import from_generation_config
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
