"""Conversations of rows by the chat template, many a process; documents and what was skipped."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from places import SHARED_DATA, needs_shared_data

from dsconv.convert.files import limits
from dsconv.errors import InputError
from dsconv.runtime.text.documents import Skipped, documents
from dsconv.runtime.text.row_forms import Conversation, PlainText, read_row
from dsconv.runtime.text.row_rendering import RowRenderer
from dsconv.runtime.text.rows import rows_of
from dsconv.runtime.text.text_file import open_text
from dsconv.runtime.text.tokenizer import TextTokenizer

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
SIMPLE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
STRICT = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate') }}{% endif %}{{ m.content }}|{% endfor %}"
)
# As reasoning models have it: thoughts of what was said before are left out.
FORGETFUL = (
    "{% for m in messages %}{{ m.role }}: {{ m.content.split('</think>')[-1].strip() }}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant: {{ opened }}{% endif %}"
)
OPENED = FORGETFUL.replace("{{ opened }}", "<think>\n")


def chat(*contents: str, **more: Any) -> Conversation:
    turns = [
        {"role": "assistant" if i % 2 else "user", "content": c} for i, c in enumerate(contents)
    ]
    return Conversation(tuple(turns), **more)


def render(template: str | None, *rows: PlainText | Conversation) -> list[str]:
    found = RowRenderer(template, SPECIAL).render(rows)
    return [one.text or one.reason for one in found]


def test_texts_and_conversations_in_their_order() -> None:
    rows = [PlainText("one"), chat("q", "a"), PlainText("two"), chat("Q")]
    expected = ["one", "<s>user: q\nassistant: a\n", "two", "<s>user: Q\n"]
    assert render(SIMPLE, *rows) == expected


def test_without_a_template_the_words_stand_one_below_the_other() -> None:
    assert render(None, chat("q", "a")) == ["q\na\n"]


def test_a_row_that_the_template_refuses_leaves_the_others() -> None:
    wrong = Conversation(tuple({"role": "user", "content": c} for c in "ab"))
    found = render(STRICT, chat("q", "a"), wrong, chat("Q"))
    assert found[0] == "q|a|"
    assert "roles must alternate" in found[1]
    assert found[2] == "Q|"


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (FORGETFUL, "user: q\nassistant: <think>\nhm\n</think>\n\na</s>"),
        (OPENED, "user: q\nassistant: <think>\nhm\n</think>\n\na</s>"),
        (SIMPLE, None),
    ],
)
def test_the_last_answer_keeps_its_thoughts(template: str, expected: str | None) -> None:
    written = chat("q", "<think>\nhm\n</think>\n\na")
    apart = read_row(
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "a", "reasoning_content": "hm"},
            ]
        }
    )
    found = render(template, written, apart)
    if expected is None:
        assert found[0] == "<s>user: q\nassistant: <think>\nhm\n</think>\n\na\n"
        assert "hm\n</think>\n\na" in found[1]
    else:
        assert found == [expected, expected]


def test_turns_that_the_template_leaves_out_are_told() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}"
    )
    found = RowRenderer(template, SPECIAL).render([chat("question", "answer")])
    assert found[0].left_out == ("assistant",)


def test_the_developer_is_the_system_where_the_template_knows_none() -> None:
    row = Conversation(({"role": "developer", "content": "d"}, {"role": "user", "content": "q"}))
    assert render(SIMPLE, row) == ["<s>system: d\nuser: q\n"]
    assert render(SIMPLE + "{# developer #}", row) == ["<s>developer: d\nuser: q\n"]


@pytest.mark.parametrize(
    "template",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{{ 'x' * 99999999 }}",
        "{% set x = namespace(v='x') %}"
        "{% for a in range(60) %}{% set x.v = x.v ~ x.v %}{% endfor %}",
    ],
)
def test_a_template_without_end_is_stopped_soon(template: str) -> None:
    start = time.monotonic()
    found = RowRenderer(template, SPECIAL).render([chat("q")] * 200)
    assert found[-1].limit
    assert len(found) == 1
    assert time.monotonic() - start < 4 * limits.TEMPLATE_SECONDS + 2 * 2 + 5


def test_one_row_that_takes_too_long_is_named(tmp_path: Path) -> None:
    template = SIMPLE + (
        "{% if messages[0].content == 'slow' %}{% for a in range(99999) %}"
        "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}"
    )
    rows = [{"prompt": "slow" if i == 11 else "fast", "response": "x"} for i in range(20)]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    with pytest.raises(InputError, match=r"rows.jsonl: line 12: chat template: still running"):
        read_documents(path, template)


def read_documents(path: Path, template: str | None = SIMPLE) -> list[str]:
    with open_text(path) as file:
        rows = rows_of(file)
        assert rows is not None
        skipped = Skipped(rows)
        order = range(len(rows))
        found = [
            one.text for one in documents(rows, order, RowRenderer(template, SPECIAL), skipped)
        ]
        skipped.finish(print)
        return found


def test_skipped_rows_are_counted_and_the_first_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    lines = ['{"text": "a"}'] * 20
    lines[3], lines[5], lines[8], lines[13] = "{", '{"text": 1}', '{"x": 1}', '{"text": " "}'
    lines[17] = '{"messages": [{"role": "user", "content": [{"type": "image"}]}]}'
    path.write_text("\n".join(lines), "utf-8")
    assert read_documents(path) == ["a"] * 15
    told = capsys.readouterr().out
    assert "4 of 19 rows skipped: line 4: not valid JSON" in told
    assert "; line 6: text is a number" in told
    assert "; line 9: its keys are 'x'" in told
    assert "line 18" not in told


def test_most_rows_unusable_stops_it_early(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"ids": [1]}\n' * 100_000, "utf-8")
    start = time.monotonic()
    with pytest.raises(InputError, match=r"line 1: its keys are 'ids'.*32 of 32") as caught:
        read_documents(path)
    assert "messages or conversations" in caught.value.hint
    assert time.monotonic() - start < 2


def test_a_template_that_refuses_all_rows_says_where(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    row = {"messages": [{"role": "assistant", "content": "a"}]}
    path.write_text(json.dumps([row] * 3), "utf-8")
    with pytest.raises(InputError, match=r"entry 1: the chat template refuses it: .*alternate"):
        read_documents(path, STRICT)


def test_rows_of_nothing_but_blanks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": ""}\n' * 5, "utf-8")
    with pytest.raises(InputError, match="all 5 rows are empty"):
        read_documents(path)


def test_the_chosen_answer_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "q", "chosen": "a", "rejected": "b"}\n' * 2, "utf-8")
    assert read_documents(path) == ["<s>user: q\nassistant: a\n"] * 2
    assert "2 of 2 rows: chosen is used, rejected is not" in capsys.readouterr().out


@needs_shared_data
@pytest.mark.parametrize("name", ["deepseek-r1-distill-llama", "deepseek-r1-distill-qwen"])
def test_conversations_as_transformers_renders_them(name: str) -> None:
    """And one beginning of text, also where the tokenizer adds one of its own."""
    import transformers

    folder = SHARED_DATA / "tokenizers" / name
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    side_files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    ours = TextTokenizer(side_files)
    renderer = RowRenderer.of_model(side_files, ours)
    turns: list[dict[str, Any]] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+2?"},
        {"role": "assistant", "content": "4"},
    ]
    found = renderer.render([Conversation(tuple(turns))])[0]
    assert found.text == theirs.apply_chat_template(turns, tokenize=False)
    tokens = ours.encode_chat(found.text)
    assert tokens == theirs(found.text, add_special_tokens=False)["input_ids"]
    assert tokens.count(tokens[0]) == 1
    thinking = [*turns[:-1], {"role": "assistant", "content": "<think>\nhm, 2+2\n</think>\n\n4"}]
    assert "hm, 2+2" not in theirs.apply_chat_template(thinking, tokenize=False)
    kept = renderer.render([Conversation(tuple(thinking))])[0].text
    begun = theirs.apply_chat_template(turns[:-1], tokenize=False, add_generation_prompt=True)
    assert kept.startswith(begun)
    assert kept.count("<think>") == 1
    assert kept.endswith(f"hm, 2+2\n</think>\n\n4{theirs.eos_token}")
