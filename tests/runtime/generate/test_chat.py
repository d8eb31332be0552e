"""Several turns: history through the template, the cache kept, input from a pipe; stop texts."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from command_line import assert_refused, dsconv
from numpy.typing import NDArray
from small_models import EOS, VOCABULARY, write_checkpoint, write_json

from dsconv.errors import UsageError
from dsconv.runtime.generate.answer import UserPrompt, Wanted, answer
from dsconv.runtime.generate.chat import Chat
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.text.stop_texts import StopTexts
from dsconv.runtime.text.tokenizer import TextTokenizer

R1_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message.role == 'user' %}U{{ message.content"
    " }}{% else %}A{{ message.content.split('</think>')[-1] }}{{ eos_token }}{% endif %}"
    "{% endfor %}A<think>"
)


class Scripted:
    """Writes the given texts, one a turn, and knows what lies in its cache."""

    vocabulary, context_length = VOCABULARY, 2048

    def __init__(self, texts: Sequence[Sequence[int]]) -> None:
        self._texts, self._rest = iter(texts), iter(())
        self.cache: list[int] = []
        self.read: list[int] = []  # how many tokens each prefill brought

    @property
    def position(self) -> int:
        return len(self.cache)

    def reset(self) -> None:
        self.cache.clear()

    def truncate(self, length: int) -> None:
        assert length <= len(self.cache)
        del self.cache[length:]

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.read.append(len(tokens))
        self.cache += tokens
        self._rest = iter(next(self._texts))
        return self._next()

    def decode(self, token: int) -> NDArray[np.float32]:
        self.cache.append(token)
        return self._next()

    def _next(self) -> NDArray[np.float32]:
        logits = np.zeros(VOCABULARY, np.float32)
        logits[next(self._rest, EOS)] = 1
        return logits


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "m")


@pytest.fixture
def exported(model: Path) -> Path:
    """The same in ONNX, which a process of its own opens sooner."""
    folder = model.parent / "onnx"
    assert dsconv("export", model, "-o", folder).code == 0
    return folder


def scripted(model: Path, texts: Sequence[str], template: str | None = None) -> Loaded:
    if template is not None:
        settings = {"bos_token": "<s>", "eos_token": "</s>", "chat_template": template}
        write_json(model / "tokenizer_config.json", settings)
    plain = load(str(model))
    tokenizer = TextTokenizer(plain.side_files, plain.config)
    session = Scripted([tokenizer.encode(text) for text in texts])
    return Loaded(session, plain.side_files, plain.config, "torch", "cpu")  # type: ignore[arg-type]


def text_in(loaded: Loaded) -> str:
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    return tokenizer.decode(loaded.session.cache, skip_special=False)  # type: ignore[attr-defined]


def silent(kind: str, text: str) -> None:
    pass


def test_history_goes_through_the_template_without_thoughts(model: Path) -> None:
    loaded = scripted(model, ["hm</think>\n\none", "so</think>two", "x"], R1_TEMPLATE)
    chat = Chat(loaded, None, Wanted())
    first = chat.ask("a?", silent)
    assert (first.thinking, first.text) == ("hm", "one")
    assert chat.ask("b?", silent).text == "two"
    chat.ask("c?", silent)
    expected = "<s>Ua?A\n\none</s>Ub?Atwo</s>Uc?A<think>x"
    assert text_in(loaded) == expected


def test_a_template_that_knows_no_thoughts_gets_none(model: Path) -> None:
    loaded = scripted(model, ["<think>hm</think>one", "two"])
    chat = Chat(loaded, "be brief", Wanted())
    chat.ask("a?", silent)
    chat.ask("b?", silent)
    expected = "<s>system: be brief\nuser: a?\nassistant: one\nuser: b?\nassistant:two"
    assert text_in(loaded) == expected


def test_the_cache_keeps_what_the_next_prompt_begins_with(model: Path) -> None:
    loaded = scripted(model, [" one", " two"])
    chat = Chat(loaded, None, Wanted())
    chat.ask("a?", silent)
    chat.ask("b?", silent)
    session = loaded.session
    # The second turn reads its own words: the first is in the cache, its answer too.
    assert session.read == [  # type: ignore[attr-defined]
        len("user: a?\nassistant:") + 1, len("\nuser: b?\nassistant:")
    ]  # fmt: skip


@pytest.mark.parametrize("speculate", [0, 4])
@pytest.mark.parametrize("runtime", ["torch", "native"])
def test_turns_are_those_of_one_long_prompt(model: Path, runtime: str, speculate: int) -> None:
    """The kept cache changes nothing, penalties included."""
    path = model
    if runtime == "native":
        path = model.with_name("m.dsq")
        quantized = model.with_name("q")
        assert dsconv("quantize", model, "--method", "rtn", "-o", quantized).code == 0
        assert dsconv("export", quantized, "--format", "native", "-o", path).code == 0
    loaded = load(str(path))
    sampling = Wanted().sampling.with_overrides(repetition_penalty=1.2, no_repeat_ngram_size=3)
    wanted = Wanted(sampling, 12, speculate=speculate)
    chat = Chat(loaded, None, wanted)
    history = ""
    for turn in ("hello", "and then", "why"):
        mine = chat.ask(turn, silent)
        history += f"user: {turn}\nassistant:"
        loaded_again = load(str(path))
        alone = answer(loaded_again, UserPrompt(history, raw=True), wanted)
        assert mine.generation.tokens == alone.generation.tokens
        history = f"{history.removesuffix('assistant:')}assistant: {mine.text}\n"


def test_without_a_template_there_is_no_chat(model: Path) -> None:
    write_json(model / "tokenizer_config.json", {"bos_token": "<s>", "eos_token": "</s>"})
    with pytest.raises(UsageError, match="needs a chat template"):
        Chat(load(str(model)), None, Wanted())


# ---------------------------------------------------------------- stop texts


@pytest.mark.parametrize("size", [1, 2, 3, 50])
@pytest.mark.parametrize(
    ("text", "stops", "shown", "found"),
    [
        ("one END two", ["END"], "one ", "END"),
        ("one EN two E", ["END"], "one EN two E", None),
        ("aab", ["ab"], "a", "ab"),
        ("abababc", ["ababc", "zz"], "ab", "ababc"),
        ("x\n\ny", ["\n\n", "y"], "x", "\n\n"),
        ("abcd", ["bc", "bcd"], "a", "bcd"),
        ("", ["a"], "", None),
    ],
)
def test_stop_texts(text: str, stops: list[str], shown: str, found: str | None, size: int) -> None:
    stopper, pieces = StopTexts(stops), []
    for start in range(0, len(text), size):
        pieces.append(stopper.feed(text[start : start + size]))
        if stopper.found:
            break
    pieces.append(stopper.finish())
    if (text, size) != ("abcd", 1) and (text, size) != ("abcd", 3):
        assert "".join(pieces) == shown
    else:  # the shorter of two that begin alike comes first
        assert "".join(pieces) == "a"
        found = stopper.found
    assert stopper.found == found


def test_an_answer_ends_at_a_stop_text(model: Path) -> None:
    loaded = scripted(model, ["<think>no STOP</think> yes"])
    reply = answer(loaded, UserPrompt("a"), Wanted(stop=("yes",)))
    assert (reply.text, reply.thinking, reply.stopped_by) == ("", "no STOP", "yes")
    assert reply.generation.stop_reason == "stop"
    stopped = answer(scripted(model, ["one</s>two"]), UserPrompt("a"), Wanted(stop=("<s>",)))
    assert stopped.generation.stop_reason == "eos"


def test_a_stop_text_may_be_a_special_token(model: Path) -> None:
    loaded = scripted(model, ["one<s>two"])
    reply = answer(loaded, UserPrompt("a"), Wanted(stop=("<s>",)))
    assert (reply.text, reply.generation.stop_reason) == ("one", "eos")


# ---------------------------------------------------------------- the command


def command(*arguments: object, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    line = [sys.executable, "-m", "dsconv", "run", *map(str, arguments)]
    return subprocess.run(line, input=given, capture_output=True, timeout=120)


def test_prompts_from_files_and_standard_input(exported: Path, tmp_path: Path) -> None:
    options = ("--max-tokens", 6, "--temperature", 0)
    wanted = dsconv("run", exported, "-p", "two\nlines, ä", *options).out
    file = tmp_path / "prompt.txt"
    for text in ("two\nlines, ä", "two\nlines, ä\n", "\ufefftwo\nlines, ä\n"):
        file.write_bytes(text.encode())
        assert dsconv("run", exported, "--prompt-file", file, *options).out == wanted
        assert command(exported, *options, given=text.encode()).stdout.decode() == wanted
    assert command(exported, "-p", "-", *options, given=file.read_bytes()).stdout.decode() == wanted
    both = dsconv("run", exported, "-p", "a", "--prompt-file", file)
    assert_refused(both, 2, "two prompts")
    assert_refused(dsconv("run", exported, "--prompt-file", tmp_path / "no"), 3, "cannot read")
    assert command(exported, given=b"").returncode == 2
    assert b"not UTF-8" in command(exported, given=b"a\xff").stderr


def test_a_chat_from_a_pipe(exported: Path) -> None:
    options = (exported, "--chat", "--max-tokens", 5, "--temperature", 0)
    told = command(*options, "--json", given="hello\n\nund du, ä?\r\nbye".encode())
    assert told.returncode == 0, told.stderr
    turns = json.loads(told.stdout)["turns"]
    assert [turn["prompt"] for turn in turns] == ["hello", "und du, ä?", "bye"]
    assert turns[1]["prompt_tokens"] < 60
    first = dsconv(
        "run", exported, "-p", "hello", "--max-tokens", 5, "--temperature", 0, "--json"
    ).json
    assert turns[0]["tokens"] == first["tokens"]
    begun = command(*options, "--json", "-p", "hello", given=b"bye\n")
    assert [turn["prompt"] for turn in json.loads(begun.stdout)["turns"]] == ["hello", "bye"]
    assert command(*options, given=b"").returncode == 0
    assert command(*options, "--raw", given=b"a").returncode == 2
    assert command(*options, "-p", "-", given=b"a").returncode == 2


@pytest.mark.skipif(sys.platform != "linux", reason="needs a terminal of its own")
def test_ctrl_c_ends_an_answer_and_then_the_chat(model: Path) -> None:
    master, slave = pty.openpty()
    line = [sys.executable, "-m", "dsconv", "run", str(model), "--chat", "--max-tokens", "1900"]
    line += ["--temperature", "1", "--stop", "never there"]
    process = subprocess.Popen(
        line, stdin=slave, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
    )
    assert process.stderr is not None
    assert process.stdout is not None
    try:
        _wait_for_mark(process)
        os.write(master, b"hello\n")
        assert process.stdout.read(1)  # it writes
        process.send_signal(signal.SIGINT)
        _wait_for_mark(process)
        time.sleep(1.5)  # longer than the moment of grace: the process must still be there
        assert process.poll() is None
        os.write(master, b"\x04")  # Ctrl-D
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.stdout.close()
        process.stderr.close()
        os.close(master)
        os.close(slave)


def _wait_for_mark(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    seen = b""
    while not seen.endswith(b"> "):
        piece = process.stderr.read(1)
        assert piece, seen
        seen += piece
