"""The process that renders templates for a server, against the one that `run` starts for each."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from small_models import TEMPLATE

from dsconv.convert.files import limits
from dsconv.errors import InputError
from dsconv.runtime.serve.texts.template_process import TemplateProcess
from dsconv.runtime.text.chat_template import render_turns

SPECIAL = {"bos_token": "<s>"}
KIND = (
    "{% if messages[0].content == 'loop' %}{% for i in range(99999) %}{% for j in range(99999) %}"
    "{% endfor %}{% endfor %}{% elif messages[0].content == 'large' %}{{ 'x' * 3000000 }}"
    "{% elif messages[0].content == 'memory' %}{{ ('x' * 900000000)|length }}"
    "{% elif messages[0].content == 'refused' %}{{ raise_exception('not this') }}"
    "{% else %}{{ messages|length }} {{ bos_token }}{{ tools|tojson }}{{ more }}{% endif %}"
)


@pytest.fixture(scope="module")
def process() -> Iterator[TemplateProcess]:
    found = TemplateProcess(KIND)
    yield found
    found.close()


def turns(*texts: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text} for text in texts]


def test_it_renders_as_run_does(process: TemplateProcess) -> None:
    settings = {"more": "\ud800 ü 😀", "tools": [{"a": None}]}
    for texts in (("a",), ("ü", "\ud83d"), ("x" * 100_000,)):
        expected = render_turns(KIND, turns(*texts), SPECIAL, settings)
        assert process.render(turns(*texts), SPECIAL, settings) == expected
    chat = TemplateProcess(TEMPLATE)
    assert chat.render(turns("hi"), SPECIAL, {}) == "<s>user: hi\nassistant:"
    chat.close()


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("loop", "still running after"),
        ("large", "characters"),
        ("memory", "MiB of memory|died"),
        ("refused", "not this"),
    ],
)
def test_what_goes_wrong_is_told_and_the_next_one_is_served(
    process: TemplateProcess, kind: str, words: str
) -> None:
    with pytest.raises(InputError, match=words):
        process.render(turns(kind), SPECIAL, {})
    assert process.render(turns("a"), SPECIAL, {"more": 1}) == "1 <s>null1"


def test_a_template_that_is_wrong_or_too_long() -> None:
    for template, words in (
        ("{% for %}", "line 1"),
        ("{{ ''.__class__.mro() }}", "sandbox"),
        ("x" * (limits.TEMPLATE_CHARACTERS + 1), "limit"),
    ):
        process = TemplateProcess(template)
        with pytest.raises(InputError, match=words):
            process.render(turns("a"), SPECIAL, {})
        process.close()


def test_it_comes_back_after_its_death_and_serves_many_threads(process: TemplateProcess) -> None:
    process.start()
    assert process._process is not None
    os.kill(process._process.pid, signal.SIGKILL)
    process._process.wait()
    with ThreadPoolExecutor(8) as pool:
        texts = list(pool.map(lambda n: process.render(turns(*"a" * n), SPECIAL, {}), range(1, 40)))
    assert texts == [f"{n} <s>null" for n in range(1, 40)]
