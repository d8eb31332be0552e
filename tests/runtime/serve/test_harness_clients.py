"""lm-evaluation-harness as a client of the server, beside the artifact as a model of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
from harness_tasks import write_choices, write_gsm8k, write_rolling
from native_models import exported
from served import Server, serving
from small_models import gpt2_checkpoint

NEEDED = {"lm_eval", "tenacity", "aiohttp", "requests"}
MISSING = sorted(NEEDED - set(packages_distributions()))
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"pip install 'lm_eval[api]' ({MISSING} missing)"),
]
TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
WORDS = ("cat", "hat", "mat", "dog", "fog", "log")
SENTENCES = [f"the {word} and the other {word} there" for word in WORDS]
Samples = dict[int, Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    found: Path = tmp_path_factory.mktemp("harness")
    gpt2_checkpoint(found / "checkpoint", max_position_embeddings=512)
    settings = found / "checkpoint" / "tokenizer_config.json"
    known = json.loads(settings.read_text("utf-8")) if settings.exists() else {}
    known |= {"chat_template": TEMPLATE, "tokenizer_class": "PreTrainedTokenizerFast"}
    settings.write_text(json.dumps(known), encoding="utf-8")
    exported(found / "checkpoint", found / "m.dsq")
    write_choices(found, SENTENCES, 6)
    write_rolling(found, ["the end", "the cat and the hat. " * 3])
    rows = [{"question": text, "answer": f"#### {i}"} for i, text in enumerate(SENTENCES)]
    for name in ("test_0000_0199.jsonl", "train_calib_256.jsonl"):
        (found / name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    write_gsm8k(found, found, 6, most=12)
    return found


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with serving(folder / "m.dsq", "--name", "m", "--threads", 1) as found:
        yield found


def evaluate(folder: Path, name: str, task: str, *options: str) -> Samples:
    """-> the model's answers to each question."""
    output = folder / name
    command = [sys.executable, "-m", "dsconv.lm_eval", "run", "--include_path", str(folder)]
    command += ["--tasks", task, "--output_path", str(output), "--log_samples", *options]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    (samples,) = output.glob(f"**/samples_{task}_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    return {row["doc_id"]: row["resps"] for row in rows}


def arguments(server: Server, folder: Path, path: str, **more: object) -> tuple[str, ...]:
    given = {"model": "m", "base_url": server.url + path, "tokenizer": folder / "checkpoint"}
    given |= {"max_retries": 1, "max_length": 512, **more}
    return ("--model_args", ",".join(f"{name}={value}" for name, value in given.items()))


def sums(samples: Samples) -> list[float]:
    firsts = [resp[0] for number in sorted(samples) for resp in samples[number]]
    return [float(first if isinstance(first, str) else first[0]) for first in firsts]


@pytest.mark.parametrize(("task", "batch"), [("local_choices", 4), ("local_rolling", 1)])
def test_log_likelihoods(server: Server, folder: Path, task: str, batch: int) -> None:
    """Prompts as lists of tokens, answered with echo and log-probabilities."""
    own = ("--model", "dsconv", "--model_args", f"path={folder}/m.dsq,max_length=511,kv=fp16")
    expected = evaluate(folder, f"own-{task}-{batch}", task, *own)
    options = ("--model", "local-completions", "--batch_size", str(batch))
    given = arguments(server, folder, "/v1/completions", num_concurrent=2, add_bos_token=True)
    found = evaluate(folder, f"api-{task}-{batch}", task, *options, *given)
    assert len(sums(found)) == len(sums(expected)) > 1
    assert sums(found) == pytest.approx(sums(expected), abs=1e-4)


def test_generation(server: Server, folder: Path) -> None:
    own = ("--model", "dsconv", "--model_args", f"path={folder}/m.dsq,kv=fp16")
    expected = evaluate(folder, "own-texts", "local_gsm8k", *own)
    given = arguments(server, folder, "/v1/completions", num_concurrent=3, tokenized_requests=False)
    found = evaluate(folder, "api", "local_gsm8k", "--model", "local-completions", *given)
    assert found == expected


def test_generation_by_chat(server: Server, folder: Path) -> None:
    chat = ("--apply_chat_template",)
    own = ("--model", "dsconv", "--model_args", f"path={folder}/m.dsq,kv=fp16")
    expected = evaluate(folder, "own-chat", "local_gsm8k", *own, *chat)
    given = arguments(server, folder, "/v1/chat/completions", num_concurrent=3)
    options = ("--model", "local-chat-completions", *given, *chat)
    found = evaluate(folder, "chat", "local_gsm8k", *options)
    texts, wanted = ({i: r[0][0].strip() for i, r in rows.items()} for rows in (found, expected))
    assert texts == wanted
