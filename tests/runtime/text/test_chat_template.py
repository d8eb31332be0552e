"""Chat templates against transformers, hostile templates against the sandbox, thinking apart."""

from __future__ import annotations

import json
import logging
import sys
import time

import pytest
from real_tokenizers import NAMES, folder, real, side_files

from dsconv.convert.files import limits
from dsconv.errors import InputError
from dsconv.runtime.text import bounded_call
from dsconv.runtime.text import template_sandbox as sandbox
from dsconv.runtime.text.chat_template import Message, chat_template, render_chat
from dsconv.runtime.text.thinking import ThinkSplitter, opens_thinking, split_thinking

USER = Message("user", "What is 1+1? 你好 <b>")
CONVERSATIONS = {
    "single": [USER],
    "system": [Message("system", "Be brief."), USER],
    "two systems": [Message("system", "Be brief."), Message("system", "Be kind."), USER],
    "multi": [USER, Message("assistant", "<think>\nsum\n</think>\n\n2"), Message("user", "sure?")],
    "answered": [USER, Message("assistant", "2")],
}


def config_with(template: object) -> bytes:
    return json.dumps({"chat_template": template}).encode()


@pytest.mark.parametrize("name", NAMES)
def test_rendered_and_encoded_as_transformers_does(name: str) -> None:
    from transformers import AutoTokenizer

    logging.getLogger("transformers").setLevel(logging.ERROR)
    reference = AutoTokenizer.from_pretrained(folder(name))
    tokenizer, template = real(name), chat_template(side_files(name))
    assert template is not None
    for messages in CONVERSATIONS.values():
        plain = [{"role": message.role, "content": message.content} for message in messages]
        for prompt in (True, False):
            rendered = render_chat(template, messages, tokenizer.special_tokens, prompt)
            expected = reference.apply_chat_template(
                plain, tokenize=False, add_generation_prompt=prompt
            )
            assert rendered == expected
            ids = tokenizer.encode_chat(rendered)
            assert ids == reference(expected, add_special_tokens=False).input_ids
            assert ids.count(tokenizer.bos_id) == 1
            assert opens_thinking(rendered) == (prompt and name != "deepseek-v3")


def test_where_the_template_comes_from() -> None:
    files = {"tokenizer_config.json": config_with("config")}
    assert chat_template(files) == "config"
    files["chat_template.json"] = config_with("json")
    assert chat_template(files) == "json"
    files["chat_template.jinja"] = "jinjä".encode()
    assert chat_template(files) == "jinjä"
    named = [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]
    assert chat_template({"tokenizer_config.json": config_with(named)}) == "d"
    assert chat_template({"tokenizer_config.json": b"{}"}) is None
    assert chat_template({}) is None


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"chat_template.jinja": b"\xff"}, "not UTF-8"),
        ({"chat_template.json": config_with(7)}, "not a string"),
        ({"chat_template.json": config_with([{"name": "tool_use", "template": "t"}])}, "default"),
        ({"chat_template.json": config_with([{"name": "default"}])}, "template: missing"),
        ({"chat_template.json": b"nonsense"}, "not valid JSON"),
    ],
)
def test_broken_template_files(files: dict[str, bytes], message: str) -> None:
    with pytest.raises(InputError, match=message):
        chat_template(files)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ messages|tojson }}", '[{"role": "user", "content": "What is 1+1? 你好 <b>"}]'),
        ("{% for i in range(9) %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}", "012"),
        ("  {% if true %}\nx\n  {% endif %}\ny", "x\ny"),
        ("{% generation %}a{% endgeneration %}{{ tools is none }}", "aTrue"),
        ("{{ strftime_now('%Y')|length }}{{ bos_token }}{{ eos_token }}", "4<s>"),
        ("{{ 'ab' * 3 }}{{ 2 ** 10 }}{{ 7 * 6 }}", "ababab102442"),
    ],
)
def test_dialect(template: str, expected: str) -> None:
    assert render_chat(template, [USER], {"bos_token": "<s>"}) == expected


DOUBLING = "{% set ns = namespace(s='a' * 64) %}{% for i in range(60) %}"
SQUARES = "{% set ns = namespace(x=3) %}{% for i in range(90) %}{% set ns.x = ns.x * ns.x %}"
HOSTILE = [
    ("{{ ''.__class__.__mro__ }}", "sandbox"),
    ("{{ cycler.__init__.__globals__ }}", "sandbox"),
    ("{{ messages.append(1) }}", "sandbox"),
    ("{{ '{0.__class__.mro}'.format(1) }}", "sandbox"),
    ("{% include 'x' %}", "no loader"),
    ("{{ range(100001) }}", "Range too big"),
    ("{% for i in range(90000) %}0123456789abcdef{% endfor %}", "more than|still running"),
    (DOUBLING + "{% set ns.s = ns.s ~ ns.s %}{% endfor %}", "more than|still running"),
    (DOUBLING + "{% set ns.s = ns.s + ns.s %}{% endfor %}", "more than|still running"),
    ("{{ 'a'" + "|replace('a', 'aaaaaaaaaaaaaaaaaaaa')" * 9 + " }}", "more than|still running"),
    ("{{ 9 ** 99999 ** 9 }}", "bits"),
    (SQUARES + "{% endfor %}", "bits"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nested too deeply"),
    ("{{ " + "(" * 5000, "nested too deeply"),
    ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ("{{ messages[9].role }}", "no element 9"),
    ("{{ messages[0].missing.role }}", "missing"),
    ("\n{% if %}", "line 2"),
    ("{{ raise_exception('no system role') }}", "chat template: no system role"),
]


@pytest.mark.parametrize(("template", "message"), HOSTILE)
def test_hostile_templates(template: str, message: str) -> None:
    before = sys.gettrace()
    with pytest.raises(InputError, match=message) as caught:
        render_chat(template, [USER], {})
    assert caught.value.hint
    assert sys.gettrace() is before


ENDLESS = [
    "{% for a in range(90000) %}{% for b in range(90000) %}{% endfor %}{% endfor %}",
    "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(40) }}",
]
# One call into C that compares megabytes a million times.
IN_C = (
    "{% set a = 'a' * 1000000 %}{% set b = 'a' * 999999 ~ 'a' %}"
    "{{ ([a, b] * 50000)|sort(case_sensitive=true)|length }}"
)


@pytest.mark.parametrize("template", ENDLESS)
def test_endless_templates(template: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 0.3)
    start = time.monotonic()
    with pytest.raises(InputError, match=r"still running after 0\.3 seconds"):
        render_chat(template, [USER], {})
    assert time.monotonic() - start < 1.5


@pytest.mark.skipif(sys.platform != "linux", reason="rendering has a process of its own on Linux")
def test_c_code_is_stopped_in_time() -> None:
    start = time.monotonic()
    with pytest.raises(InputError, match=r"still running after 1\.5 seconds"):
        render_chat(IN_C, [USER], {})
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(("template", "message"), [*HOSTILE, (ENDLESS[0], "still running")])
def test_where_processes_cannot_be_copied(
    template: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_call, "CAN_FORK", False)
    monkeypatch.setattr(sandbox, "CAN_FORK", False)
    monkeypatch.setattr(limits, "TEMPLATE_SECONDS", 0.3)
    before = sys.gettrace()
    with pytest.raises(InputError, match=f"{message}|still running"):
        render_chat(template, [USER], {})
    assert sys.gettrace() is before


def test_a_template_that_is_too_long() -> None:
    length = limits.TEMPLATE_CHARACTERS
    assert render_chat("x" * length, [USER], {}) == "x" * length
    with pytest.raises(InputError, match=f"{length + 1} characters, limit {length}"):
        render_chat("x" * (length + 1), [USER], {})


@pytest.mark.skipif(sys.platform != "linux", reason="the memory limit exists on Linux only")
@pytest.mark.parametrize(
    "template",
    ["{{ 'a' * 10 ** 10 }}", "{{ '%9999999999d' % 1 }}", "{{ 'a'|center(9999999999) }}"],
)
def test_memory_hungry_templates(template: str) -> None:
    import resource

    before = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(InputError, match="256 MiB of memory"):
        render_chat(template, [USER], {})
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_a_long_conversation_is_no_attack() -> None:
    long = Message("user", "x" * (2 * limits.TEMPLATE_OUTPUT))
    assert len(render_chat("{{ messages[0].content }}", [long], {})) == 2 * limits.TEMPLATE_OUTPUT


def split(pieces: list[str], inside: bool) -> tuple[str, str]:
    splitter = ThinkSplitter(inside)
    found = [part for piece in pieces for part in splitter.feed(piece)] + [*splitter.finish()]
    assert all(text for _, text in found)
    thoughts = "".join(text for kind, text in found if kind == "think")
    return thoughts, "".join(text for kind, text in found if kind == "answer")


OUTPUTS = [
    ("<think>\na < b\n</think>\n\n2", False, ("\na < b\n", "\n\n2")),
    ("\na </thin > b</think>\n2", True, ("\na </thin > b", "\n2")),
    ("\n<think>\nagain</think>2", True, ("\nagain", "2")),
    ("just <thin an answer <", False, ("", "just <thin an answer <")),
    ("never closed </think", True, ("never closed </think", "")),
    ("x</think>the tag <think> opens", True, ("x", "the tag <think> opens")),
    ("\n\n</think>2", True, ("\n\n", "2")),
    ("<<think>a<</think>b", False, ("a<", "<b")),
    ("", True, ("", "")),
    ("\n <thi", True, ("\n <thi", "")),
]


@pytest.mark.parametrize(("output", "inside", "expected"), OUTPUTS)
def test_thinking_apart_at_every_cut(output: str, inside: bool, expected: tuple[str, str]) -> None:
    for first in range(len(output) + 1):
        for second in range(first, len(output) + 1):
            cut = [output[:first], output[first:second], output[second:]]
            assert split(cut, inside) == expected
    assert split(list(output), inside) == split_thinking(output, inside) == expected


def test_text_is_not_held_back_longer_than_needed() -> None:
    splitter = ThinkSplitter(False)
    assert list(splitter.feed("a < b <t")) == [("answer", "a < b ")]
    assert list(splitter.feed("d>")) == [("answer", "<td>")]


def test_a_whole_text_with_the_closing_tag_only() -> None:
    assert split_thinking("so 2</think>2", inside=False) == ("so 2", "2")


@pytest.mark.parametrize(
    ("prompt", "inside"),
    [("…<think>", True), ("…<think>\n", True), ("…", False), ("<think>\n\n</think>\n\n", False)],
)
def test_prompt_opens_thinking(prompt: str, inside: bool) -> None:
    assert opens_thinking(prompt) == inside
