"""The model of lm-evaluation-harness beside the harness' own back end `hf`, on the same weights."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import warnings
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from native_models import exported
from places import ROOT
from small_models import LLAMA, gpt2_checkpoint

CONTEXT = 128
pytestmark = pytest.mark.skipif(
    not {"lm_eval", "accelerate"} <= set(packages_distributions()),
    reason="lm-evaluation-harness is not installed (pip install lm_eval accelerate)",
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "checkpoint"
    gpt2_checkpoint(folder, torch_dtype="float16", max_position_embeddings=CONTEXT, **LLAMA)
    exported(folder, folder.parent / "m.dsq")
    return folder


@pytest.fixture(scope="module")
def registry() -> Any:
    """The harness' models, ours among them. In this folder Python would find our file first."""
    path, sys.path[:] = sys.path[:], [p for p in sys.path if Path(p or ".").resolve() != ROOT]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        importlib.import_module("dsconv.lm_eval")
        found = importlib.import_module("lm_eval.api.registry")
        found.get_model("hf")
    sys.path[:] = path
    return found


@pytest.fixture(scope="module")
def hf(registry: Any, checkpoint: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = {"pretrained": str(checkpoint), "dtype": "float32"}
        return registry.get_model("hf").create_from_arg_obj(arguments, {"device": "cpu"})


@pytest.fixture(scope="module")
def ours(registry: Any, checkpoint: Path) -> Any:
    path = checkpoint.parent / "m.dsq"
    model = registry.get_model("dsconv")
    return model.create_from_arg_string(f"path={path},threads=2", {"device": "cuda:0"})


def instances(kind: str, arguments: list[tuple[Any, ...]]) -> list[Any]:
    module = importlib.import_module("lm_eval.api.instance")
    return [module.Instance(kind, {}, given, i) for i, given in enumerate(arguments)]


SHOTS = "the cat and the hat. " * 3


def test_log_likelihoods_are_those_of_hf(ours: Any, hf: Any) -> None:
    pairs = [
        *[(f"{SHOTS}the", word) for word in (" a", " b", " the end", "")[:3]],
        ("", "the thing"),
        ("", "<s>the thing"),
        ("<s>begun", " already"),
        ("ends with blanks  ", "and goes on"),
        (SHOTS * 4, " too long"),
    ]
    asked = instances("loglikelihood", pairs)
    found, expected = (model.loglikelihood(asked, disable_tqdm=True) for model in (ours, hf))
    for (total, greedy), (wanted, is_greedy) in zip(found, expected, strict=True):
        assert total == pytest.approx(wanted, abs=1e-3)
        assert greedy == is_greedy


def test_rolling_is_that_of_hf(ours: Any, hf: Any) -> None:
    texts = ["the end", SHOTS, SHOTS * 9]
    asked = instances("loglikelihood_rolling", [(text,) for text in texts])
    found, expected = (model.loglikelihood_rolling(asked) for model in (ours, hf))
    for total, wanted in zip(found, expected, strict=True):
        assert total == pytest.approx(wanted, abs=1e-3)


def test_texts_are_those_of_hf(ours: Any, hf: Any) -> None:
    prompts = [SHOTS, f"{SHOTS}x", "a", SHOTS * 9, "<s>begun"]
    settings: list[dict[str, Any]] = [
        {"until": ["e"], "max_gen_toks": 20},
        {"until": [], "max_new_tokens": 9, "do_sample": False},
        {"until": ["</s>", "<s>"], "max_gen_toks": 30, "temperature": 0.0},
        {"repetition_penalty": 1.5, "max_gen_toks": 12},
    ]
    asked = instances("generate_until", [(p, dict(s)) for p in prompts for s in settings])
    again = instances("generate_until", [(p, dict(s)) for p in prompts for s in settings])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = hf.generate_until(again, disable_tqdm=True)
    assert ours.generate_until(asked, disable_tqdm=True) == expected


def test_what_the_harness_asks_beside(ours: Any, hf: Any) -> None:
    for name in ("eot_token_id", "prefix_token_id", "max_length", "max_gen_toks"):
        assert getattr(ours, name) == getattr(hf, name), name
    talk = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "well"}]
    assert ours.apply_chat_template(talk[:1]) == hf.apply_chat_template(talk[:1])
    assert ours.apply_chat_template(talk, False) == hf.apply_chat_template(talk, False)
    assert ours.chat_template(True) == hf.chat_template(True)
    assert ours.tok_decode(ours.tok_encode("the end")) == hf.tok_decode(hf.tok_encode("the end"))
    assert ours.tokenizer_name.startswith("dsconv-")
    assert ours.get_model_info()["model_runtime"] == "native"


def command(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dsconv.lm_eval", *arguments],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )


@pytest.mark.slow
def test_the_command_is_the_harness_itself(checkpoint: Path, tmp_path: Path) -> None:
    """A task with choices; answers kept in a cache; and built-in models are still known."""
    module = importlib.import_module("harness_tasks")
    module.write_choices(tmp_path, [f"the {i} and then the {i * i}." for i in range(6)], 5)
    run = ("run", "--include_path", str(tmp_path), "--tasks", "local_choices", "--model")
    path = checkpoint.parent / "m.dsq"
    kept = ("--use_cache", "kept", "--output_path", "out", "--log_samples")
    for _ in range(2):
        done = command(tmp_path, *run, "dsconv", "--model_args", f"path={path}", *kept)
        assert done.returncode == 0, done.stderr
    results = [json.loads(p.read_text("utf-8")) for p in tmp_path.glob("out/*/results_*.json")]
    figures = [found["results"]["local_choices"]["acc,none"] for found in results]
    assert len(figures) == 2
    assert figures[0] == figures[1]
    done = command(tmp_path, *run, "dummy")
    assert done.returncode == 0, done.stderr


def test_a_wrong_argument_is_two_lines(checkpoint: Path, tmp_path: Path) -> None:
    module = importlib.import_module("harness_tasks")
    module.write_choices(tmp_path, [f"the {i} and then the {i * i}." for i in range(6)], 5)
    run = ("run", "--include_path", str(tmp_path), "--tasks", "local_choices")
    done = command(tmp_path, *run, "--model", "dsconv", "--model_args", "path=m,thread=2")
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-2:]
    assert last[0].startswith("error: the model argument 'thread' is not known")
    assert last[1].startswith("hint: did you mean 'threads'?")
