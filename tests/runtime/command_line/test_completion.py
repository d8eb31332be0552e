"""What shells offer, by the protocol that their scripts speak."""

from __future__ import annotations

import time

import pytest
from command_line import fresh_dsconv

from dsconv.convert.formats.onnx.names import DIALECT_NAMES
from dsconv.convert.targets.table import TARGETS
from dsconv.runtime.bench.peers import PEERS
from dsconv.runtime.command_line import completion
from dsconv.runtime.export import EXPORTERS
from dsconv.runtime.sessions.native import CACHE_TYPES
from dsconv.runtime.sessions.providers import PROVIDERS


def offered(shell: str, line: str) -> list[str]:
    words = line.split(" ")
    environment = {
        "_DSCONV_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": line,  # bash
        "COMP_CWORD": str(len(words) - 1),
        "_TYPER_COMPLETE_ARGS": line,  # zsh, fish
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
    }
    outcome = fresh_dsconv(environment=environment)
    assert (outcome.code, outcome.err) == (0, "")
    found = outcome.out.replace("_arguments '*: :((", "").replace("))'", "")
    return [line.split("\t")[0].split('"')[1 if '"' in line else 0] for line in found.splitlines()]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dsconv qu", ["quantize"]),
        ("dsconv export m --target openv", ["openvino", "openvino-npu"]),
        ("dsconv export m --format g", ["gguf"]),
        ("dsconv run m --provider c", ["cpu", "cuda", "coreml", "cann"]),
        ("dsconv quantize m --method g", ["gptq"]),
        ("dsconv build r1-distill-qwen-7b-vllm", ["r1-distill-qwen-7b-vllm-int4"]),
        ("dsconv lint x --target mus", ["musa"]),
        ("dsconv bench x --against lla", ["llama.cpp"]),
    ],
)
def test_a_word_is_completed(shell: str, line: str, words: list[str]) -> None:
    found = offered(shell, line)
    assert set(words) <= set(found)
    assert all(word.startswith(line.split(" ")[-1]) for word in found)


def test_options_are_completed() -> None:
    assert "--calibration-tokens" in offered("bash", "dsconv quantize m --calib")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_of_a_shell(shell: str) -> None:
    """Typer asks which shell it runs in, unless it is told not to look."""
    environment = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}
    outcome = fresh_dsconv("--show-completion", shell, environment=environment)
    assert outcome.code == 0, outcome.err
    assert "_DSCONV_COMPLETE" in outcome.out


def test_a_key_does_not_wait_long() -> None:
    start = time.process_time()
    for complete in (completion.targets, completion.providers, completion.recipes):
        assert complete("")
    assert time.process_time() - start < 1


def test_the_words_are_those_of_the_tables() -> None:
    assert tuple(EXPORTERS) == completion.FORMATS
    assert set(completion.DIALECTS) == set(DIALECT_NAMES)
    assert tuple(PEERS) == completion.PEERS
    assert set(completion.CACHES) == set(CACHE_TYPES)
    assert completion.targets("") == list(TARGETS)
    assert completion.providers("")[: len(PROVIDERS)] == list(PROVIDERS)
