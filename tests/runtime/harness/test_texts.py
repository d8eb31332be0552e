"""Tokens and chats as transformers has them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from places import data_file
from small_models import gpt2_checkpoint
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dsconv.errors import InputError, UsageError
from dsconv.runtime.harness.options import HarnessOptions
from dsconv.runtime.harness.texts import Texts
from dsconv.runtime.sessions.load import Loaded, load

TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Which?"},
    {"role": "assistant", "content": "The answer is "},
]
TURN = "<{{ m['role'] }}>{{ m['content'] | trim }}</>"
TRIMS = "{{ bos_token }}{% for m in messages %}" + TURN + "{% endfor %}"
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gpt2_checkpoint(tmp_path_factory.mktemp("model") / "m")


@pytest.fixture(scope="module")
def loaded(folder: Path) -> Loaded:
    return load(str(folder))


def texts(loaded: Loaded, template: str | None = None, **options: Any) -> Texts:
    files = {**loaded.side_files}
    if template is not None:
        files["chat_template.jinja"] = template.encode()
    with_it = Loaded(loaded.session, files, loaded.config, loaded.runtime, loaded.provider)
    return Texts(with_it, HarnessOptions("m", **options))


def peer(folder: Path, **options: Any) -> PreTrainedTokenizerFast:
    found: PreTrainedTokenizerFast = AutoTokenizer.from_pretrained(folder, **options)
    return found


@pytest.mark.parametrize("add_bos", [None, True, False])
@pytest.mark.parametrize("text", ["the end", "", " a", "<s>the end", "<s><s>x", "a</s>b", "é😀"])
def test_tokens_are_those_of_the_back_end_hf(
    text: str, add_bos: bool | None, folder: Path, loaded: Loaded
) -> None:
    """Its rule: special tokens unless the text begins with BOS."""
    tokenizer = peer(folder, **({} if add_bos is None else {"add_bos_token": add_bos}))
    add = add_bos is not False and not text.startswith("<s>")
    expected = tokenizer.encode(text, add_special_tokens=add)
    assert texts(loaded, add_bos_token=add_bos).encode(text) == expected
    plain = tokenizer.encode(text, add_special_tokens=False)
    assert texts(loaded, add_bos_token=add_bos).encode(text, add_special_tokens=False) == plain


@pytest.mark.parametrize("name", ["deepseek-r1-distill-qwen", "deepseek-r1-distill-llama"])
def test_the_distills_begin_with_bos(name: str, loaded: Loaded) -> None:
    """As their files say, and transformers where it is told so."""
    folder = data_file("tokenizers", name)
    files = {path.name: path.read_bytes() for path in folder.glob("*.json")}
    ours = Texts(Loaded(loaded.session, files, {}, "torch", "cpu"), HarnessOptions("m"))
    tokenizer = peer(folder, add_bos_token=True)
    for text in ("Question: 1 + 1?", " a\n"):
        assert ours.encode(text) == tokenizer.encode(text)
    chat = ours.render(TALK[:2], new_turn=True)
    assert ours.encode(chat) == tokenizer.apply_chat_template(
        TALK[:2], add_generation_prompt=True, return_dict=False
    )


@pytest.mark.parametrize("template", [None, TRIMS])
@pytest.mark.parametrize("new_turn", [True, False])
def test_chats_are_those_of_transformers(
    new_turn: bool, template: str | None, folder: Path, loaded: Loaded
) -> None:
    tokenizer = peer(folder)
    if template is not None:
        tokenizer.chat_template = template
    turns = TALK[:2] if new_turn else TALK
    expected = tokenizer.apply_chat_template(
        turns,
        tokenize=False,
        add_generation_prompt=new_turn,
        continue_final_message=not new_turn,
    )
    assert texts(loaded, template).render(turns, new_turn) == expected


def test_a_template_without_system_prompts_gets_none(loaded: Loaded) -> None:
    ours = texts(loaded, REFUSES + TRIMS)
    assert ours.render(TALK[:2], new_turn=True) == "<s><user>Which?</>"
    with pytest.raises(InputError, match="no system"):
        ours.render(TALK[:1], new_turn=True)


def test_variables_reach_the_template(loaded: Loaded) -> None:
    ours = texts(
        loaded,
        "{{ enable_thinking }} {{ style.tone }}",
        enable_thinking=False,
        chat_template_args={"style": {"tone": "dry"}},
    )
    assert ours.render(TALK[:2], new_turn=True) == "False dry"


def test_a_name_for_each_way_to_read_a_text(loaded: Loaded) -> None:
    found = [
        texts(loaded),
        texts(loaded, TRIMS),
        texts(loaded, add_bos_token=False),
        texts(loaded, enable_thinking=False),
    ]
    assert len({each.fingerprint for each in found}) == len(found)
    assert texts(loaded).fingerprint == found[0].fingerprint


def test_what_is_not_there_is_refused(loaded: Loaded) -> None:
    with pytest.raises(UsageError, match="only the default"):
        texts(loaded).template("tool_use")
    files = {**loaded.side_files, "tokenizer_config.json": b"{}", "generation_config.json": b"{}"}
    bare = Loaded(loaded.session, files, {}, "torch", "cpu")
    with pytest.raises(UsageError, match="no chat template"):
        Texts(bare, HarnessOptions("m")).template()
    with pytest.raises(UsageError, match="no token for the beginning"):
        Texts(bare, HarnessOptions("m", add_bos_token=True))
    with pytest.raises(InputError, match="no token that ends a text"):
        _ = Texts(bare, HarnessOptions("m")).end_id
