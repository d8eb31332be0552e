"""Text in and out: ids as the original tokenizers give them, BOS once, streaming in pieces."""

from __future__ import annotations

import json
import logging

import pytest
from places import SHARED_DATA
from real_tokenizers import NAMES, folder, real, side_files

from dsconv.errors import InputError, UsageError
from dsconv.runtime.text.tokenizer import MAX_PENDING_TOKENS, StreamDecoder, TextTokenizer

TEXTS = (
    "Hello, world!",
    " leading space\n\n\ttab",
    "你好世界。今天天气怎么样",
    "😀👩‍👩‍👧 ok 🇩🇪",
    "<think>\nstep\n</think>\n\nanswer 12345",
    "العربية हिन्दी ไทย 한국어 café",
)


def tiny_files(
    config: dict[str, object] | None = None, template: bool = False, **files: object
) -> dict[str, bytes]:
    """Side files of a byte-level tokenizer: byte b has some id below 256, <s> 256, </s> 257."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({mark: i for i, mark in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<s>"), AddedToken("</s>")])
    if template:
        tokenizer.post_processor = processors.TemplateProcessing("<s> $A", None, [("<s>", 256)])
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=4)
    found = {"tokenizer.json": tokenizer.to_str().encode()}
    if config is not None:
        files["tokenizer_config"] = config
    return found | {f"{name}.json": json.dumps(data).encode() for name, data in files.items()}


def streamed(tokenizer: TextTokenizer, ids: list[int], context: list[int] | None = None) -> str:
    decoder = StreamDecoder(tokenizer, context or [])
    return "".join(decoder.push(token) for token in ids) + decoder.finish()


@pytest.mark.parametrize("name", ["deepseek-r1-distill-qwen", "deepseek-v3"])
def test_golden_ids(name: str) -> None:
    tokenizer = real(name)
    cases = json.loads((SHARED_DATA / "golden" / "tokenizer_ids.json").read_text("utf-8"))
    for case in cases[name]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"], skip_special=False) == case["decoded"]
        decoded = tokenizer.decode(case["ids"])
        assert streamed(tokenizer, case["ids"]) == decoded


@pytest.mark.parametrize("name", NAMES)
def test_ids_are_those_of_transformers(name: str) -> None:
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    reference = AutoTokenizer.from_pretrained(folder(name))
    for text in TEXTS:
        ids = reference(text, add_special_tokens=False).input_ids
        assert real(name).encode(text) == ids
        assert real(name).decode(ids) == reference.decode(ids, skip_special_tokens=True)
    assert real(name).bos_id == reference.bos_token_id
    assert real(name).stop_ids == (reference.eos_token_id,)
    assert real(name).special_tokens == reference.special_tokens_map


@pytest.mark.parametrize("name", [*NAMES, "tinystories-656k"])
def test_bos_exactly_once(name: str) -> None:
    tokenizer = real(name)
    bos, text = tokenizer.special_tokens["bos_token"], "Once upon a time"
    for written in (text, bos + text, bos + bos + text):
        for ids in (tokenizer.encode_prompt(written), tokenizer.encode_chat(written)):
            assert ids.count(tokenizer.bos_id) == 1
            assert ids[0] == tokenizer.bos_id
    assert tokenizer.encode_prompt("") == [tokenizer.bos_id]
    assert tokenizer.bos_id not in tokenizer.encode(text)


@pytest.mark.parametrize(
    ("config", "template", "prompt_has_bos", "chat_has_bos"),
    [
        ({"bos_token": "<s>", "add_bos_token": True}, False, True, True),
        ({"bos_token": "<s>", "add_bos_token": False}, True, False, False),
        ({"bos_token": "<s>"}, True, True, False),  # chat: the template's own affair
        ({"bos_token": "<s>"}, False, False, False),
        ({"bos_token": None}, True, False, False),
    ],
)
def test_when_bos_is_added(
    config: dict[str, object], template: bool, prompt_has_bos: bool, chat_has_bos: bool
) -> None:
    tokenizer = TextTokenizer(tiny_files(config, template))
    assert (tokenizer.encode_prompt("abcdefgh")[0] == 256) == prompt_has_bos
    assert (tokenizer.encode_chat("abcdefgh")[0] == 256) == chat_has_bos
    assert len(tokenizer.encode("abcdefgh")) == 8  # no truncation, no padding
    assert len(tokenizer.encode("a")) == 1


def test_where_special_tokens_come_from() -> None:
    generation = {"bos_token_id": 256, "eos_token_id": [257, 5]}
    by_name = tiny_files(
        {"bos_token": {"content": "<s>"}}, special_tokens_map={"bos_token": "x", "eos_token": "y"}
    )
    assert TextTokenizer(by_name).special_tokens == {"bos_token": "<s>", "eos_token": "y"}
    by_generation = tiny_files({}, generation_config=generation)
    tokenizer = TextTokenizer(by_generation, {"bos_token_id": 257, "eos_token_id": 1})
    assert tokenizer.special_tokens["bos_token"] == "<s>"
    assert (tokenizer.bos_id, tokenizer.stop_ids) == (256, (257, 5))
    by_model = TextTokenizer(tiny_files(), {"bos_token_id": 256, "eos_token_id": 257})
    assert (by_model.bos_id, by_model.stop_ids) == (256, (257,))
    nothing = TextTokenizer(tiny_files({"bos_token": None}, generation_config=generation))
    assert nothing.bos_id is None
    assert TextTokenizer(tiny_files()).stop_ids == ()
    both = TextTokenizer(tiny_files({"eos_token": "</s>"}, generation_config={"eos_token_id": 5}))
    assert both.stop_ids == (5, 257)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "tokenizer.json: missing"),
        ({"tokenizer.json": b"{}"}, "tokenizer.json: model is no object"),
        ({"tokenizer.json": b"\xff\x00"}, "tokenizer.json: not valid JSON"),
        (tiny_files() | {"tokenizer_config.json": b"[]"}, "tokenizer_config.json: not an object"),
        (tiny_files({"bos_token": 7}), "bos_token: 7 is not a string"),
        (tiny_files({"bos_token": {}}), "bos_token: content: missing"),
        (tiny_files({"bos_token": "<none>"}), "'<none>' is not in tokenizer.json"),
        (tiny_files({"add_bos_token": 1}), "add_bos_token: 1 is not true or false"),
    ],
)
def test_broken_files(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError) as caught:
        TextTokenizer(files)
    assert message in caught.value.message
    assert caught.value.hint


def test_half_a_surrogate_pair() -> None:
    with pytest.raises(UsageError, match="character 1"):
        TextTokenizer(tiny_files()).encode("a\udc80")


@pytest.mark.parametrize("text", TEXTS)
def test_streaming_bytes_keeps_characters_whole(text: str) -> None:
    tokenizer = TextTokenizer(tiny_files())
    ids, decoder = tokenizer.encode(text), StreamDecoder(tokenizer)
    assert len(ids) == len(text.encode())
    pieces = [decoder.push(token) for token in ids]
    assert [piece for piece in pieces if piece] == list(text)
    assert decoder.finish() == ""


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("text", TEXTS)
def test_streaming_gives_the_whole_text(name: str, text: str) -> None:
    tokenizer = real(name)
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(token) for token in tokenizer.encode(text)]
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_streaming_an_incomplete_character() -> None:
    tokenizer = TextTokenizer(tiny_files())
    assert streamed(tokenizer, tokenizer.encode("a你")[:-1]) == "a\ufffd"


def test_streaming_bytes_that_never_become_text() -> None:
    tokenizer = TextTokenizer(tiny_files())
    lone = tokenizer.encode("é")[1]
    decoder = StreamDecoder(tokenizer)
    pieces = [decoder.push(lone) for _ in range(10 * MAX_PENDING_TOKENS)]
    assert "".join(pieces) == "\ufffd" * 10 * MAX_PENDING_TOKENS


def test_streaming_keeps_the_space_after_the_prompt() -> None:
    tokenizer = real("tinystories-656k")  # SentencePiece style: a text's first space is dropped
    ids = tokenizer.encode_prompt("Once upon a time there was a dog")
    for cut in range(2, len(ids)):
        prompt, whole = tokenizer.decode(ids[:cut]), tokenizer.decode(ids)
        assert streamed(tokenizer, ids[cut:], ids[:cut]) == whole[len(prompt) :]
    assert streamed(tokenizer, ids) == "Once upon a time there was a dog"


def test_special_tokens_are_not_printed() -> None:
    story = real("tinystories-656k")  # whose normalizer changes the marks
    assert story.decode([1, *story.encode("Once"), 2]) == "Once"
    names = ("tokenizer.json", "generation_config.json")
    by_id = TextTokenizer({name: side_files("tinystories-656k")[name] for name in names})
    assert by_id.special_tokens == {"bos_token": "<|start_story|>", "eos_token": "<|end_story|>"}
    tokenizer = real("deepseek-r1-distill-qwen")
    ids = [*tokenizer.encode("<think>a</think>b"), *tokenizer.stop_ids, 151_900]
    assert tokenizer.decode(ids) == streamed(tokenizer, ids) == "<think>a</think>b"
