"""Tokens and settings of tokenizer_config.json, against transformers."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import transformers
from command_line import dsconv
from small_models import gpt2_checkpoint, tokenizer_json
from transformers import tokenization_utils_base, tokenization_utils_tokenizers

from dsconv.convert.open import open_checkpoint
from dsconv.errors import InputError
from dsconv.runtime.text.tokenizer import TextTokenizer, tokenizer_remarks
from dsconv.runtime.text.tokenizer_keys import TOKENIZER_KEYS

BASIC = {"bos_token": "<s>", "eos_token": "</s>"}
TEXTS = [
    "<|im_start|>user\nhi<|im_end|> <s>x</s>",
    "a <pad> b<mask>c  <tool> d",
    "a<|x|> <|x|> b x y",
    '!! " end!',
]


def decoder(**tokens: Any) -> dict[str, Any]:
    marks = {"lstrip": False, "rstrip": False, "single_word": False, "special": True}
    return {
        number.removeprefix("t"): {"normalized": False, **marks, **entry}
        for number, entry in tokens.items()
    }


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "im_start only here": {
        "added_tokens_decoder": decoder(
            t256={"content": "<s>"},
            t257={"content": "</s>"},
            t258={"content": "<|im_start|>"},
            t259={"content": "<|im_end|>", "special": False},
        )
    },
    "marks that differ": {
        "added_tokens_decoder": decoder(
            t256={"content": "<s>", "special": False}, t257={"content": "</s>", "lstrip": True}
        )
    },
    "stripping": {
        "added_tokens_decoder": decoder(t258={"content": "<|x|>", "lstrip": True, "rstrip": True})
    },
    "single word": {"added_tokens_decoder": decoder(t87={"content": "x", "single_word": True})},
    "padding": {"pad_token": "<pad>"},
    "padding that exists": {"pad_token": "</s>", "mask_token": "<mask>"},
    "a letter as special token": {"unk_token": "!"},
    "extra": {"extra_special_tokens": ["<tool>", "<|im_end|>"]},
    "additional": {"additional_special_tokens": ["<tool>", "</s>"]},
    "named extra": {"extra_special_tokens": {"tool_token": "<tool>"}},
    "split": {"split_special_tokens": True},
}


def ours(settings: dict[str, Any], **files: bytes) -> TextTokenizer:
    files = {
        **{f"{name}.json": text for name, text in files.items()},
        "tokenizer.json": tokenizer_json().encode(),
        "tokenizer_config.json": json.dumps({**BASIC, **settings}).encode(),
    }
    return TextTokenizer(files)


@pytest.mark.parametrize("name", SETTINGS)
def test_texts_are_cut_as_in_transformers(name: str, tmp_path: Path) -> None:
    settings = {**BASIC, **SETTINGS[name], "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mine = ours(SETTINGS[name])
    for text in TEXTS:
        wanted = theirs.encode(text, add_special_tokens=False)
        assert mine.encode(text) == wanted
        assert mine.decode(wanted, skip_special=False) == theirs.decode(wanted)
        shown = theirs.decode(wanted, skip_special_tokens=True)
        assert mine.decode(wanted) == shown


def test_the_older_file_of_added_tokens(tmp_path: Path) -> None:
    older = json.dumps({"<|im_start|>": 258, "</s>": 257, "<|im_end|>": 259})
    (tmp_path / "tokenizer.json").write_text(tokenizer_json())
    (tmp_path / "added_tokens.json").write_text(older)
    settings = {**BASIC, "tokenizer_class": "PreTrainedTokenizerFast"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    mine = ours({}, added_tokens=older.encode())
    for text in TEXTS:
        assert mine.encode(text) == theirs.encode(text, add_special_tokens=False)
    with pytest.raises(InputError, match=r"added_tokens\.json: '<x>' is token 300"):
        ours({}, added_tokens=b'{"<x>": 300}')
    with pytest.raises(InputError, match=r"added_tokens\.json: <x>"):
        ours({}, added_tokens=b'{"<x>": "a"}')


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"added_tokens_decoder": decoder(t300={"content": "<x>"})}, "token 300, but 258"),
        ({"added_tokens_decoder": decoder(t256={"content": "</s>"})}, "token 256, but 257"),
        ({"added_tokens_decoder": {"x": {"content": "a"}}}, "no token with its marks"),
        ({"added_tokens_decoder": {"258": None}}, "no token with its marks"),
        ({"added_tokens_decoder": []}, "added_tokens_decoder"),
        ({"extra_special_tokens": [5]}, "no token"),
        ({"additional_special_tokens": "ab"}, "not a list"),
        ({"eos_token": "<end>"}, "eos_token '<end>' is not in"),
    ],
)
def test_contradictions_and_rubbish(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        ours(settings)


def test_the_table_knows_every_key_of_transformers() -> None:
    """Parameters of the classes, and what they take out of their further keywords."""
    classes = (
        transformers.LlamaTokenizer,
        transformers.Qwen2Tokenizer,
        transformers.PreTrainedTokenizerFast,
        tokenization_utils_base.PreTrainedTokenizerBase,
    )
    keys = {
        name
        for each in classes
        for name in inspect.signature(each.__init__).parameters
        if name not in ("self", "args", "kwargs")
    }
    keys |= set(tokenization_utils_base.PreTrainedTokenizerBase.SPECIAL_TOKENS_ATTRIBUTES)
    taken = re.compile(r"""kwargs(?:\.(?:pop|get|setdefault)\(|\[)\s*["'](\w+)["']""")
    for function in (
        tokenization_utils_base.PreTrainedTokenizerBase.__init__,
        tokenization_utils_base.PreTrainedTokenizerBase._from_pretrained,
        tokenization_utils_tokenizers.TokenizersBackend.__init__,
    ):
        keys |= set(taken.findall(inspect.getsource(function)))
    inner = {"tokenizer", "_json_truncation", "_json_padding", "_spm_precompiled_charsmap"}
    assert not keys - TOKENIZER_KEYS.keys() - inner


def test_what_is_not_applied_is_named() -> None:
    files = {"tokenizer_config.json": json.dumps({"add_eos_token": True}).encode()}
    assert "add_eos_token = True is not applied" in tokenizer_remarks(files)[0]
    assert tokenizer_remarks({"tokenizer_config.json": b'{"add_eos_token": false}'}) == ()


def test_a_gguf_file_has_the_tokens_that_other_files_name(tmp_path: Path) -> None:
    model = gpt2_checkpoint(tmp_path / "m")
    settings = {**BASIC, "added_tokens_decoder": decoder(t258={"content": "<|im_start|>"})}
    (model / "tokenizer_config.json").write_text(json.dumps(settings))
    assert dsconv("quantize", model, "--method", "rtn", "-o", tmp_path / "q").code == 0
    done = dsconv("export", tmp_path / "q", "--format", "gguf", "-o", tmp_path / "m.gguf")
    assert done.code == 0, done.err
    text = "<|im_start|>user"
    for path in (tmp_path / "q", tmp_path / "m.gguf"):
        checkpoint = open_checkpoint(str(path))
        tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
        assert tokenizer.encode(text) == [258, *tokenizer.encode("user")]
