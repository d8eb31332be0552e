"""lm-evaluation-harness on an artifact, and on its checkpoint in the back end `hf`: time, answers.

    python benchmarks/sequences/harness_speed.py CHECKPOINT ARTIFACT TEXTS [QUESTIONS [TOKENS
        [TASK…]]]

TEXTS is a folder with gsm8k/ (test_0000_0199.jsonl, train_calib_256.jsonl) and
tinystories/train_sample_a.txt. GSM8K has five worked examples, the same for every question; how a
story goes on is a choice of four. Each model runs in a process of its own, as users start it; its
time is the harness' own figure, which holds loading and not the start of Python. `hf` gets batches
of 1 and of 8. The task `prompts` has those of GSM8K alone, with their beginning shared and without.
Needs lm_eval and accelerate.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2] / "tests" / "support" / "batching"))
from harness_tasks import write_choices, write_gsm8k

from dsconv.runtime.batches.open import open_batch
from dsconv.runtime.harness.options import HarnessOptions
from dsconv.runtime.harness.texts import Texts
from dsconv.runtime.scheduling.request import Outcome, Request
from dsconv.runtime.scheduling.run_all import run_all

TASKS = ("prompts", "local_gsm8k", "local_choices")
Samples = dict[int, Any]


def evaluate(folder: Path, name: str, task: str, *arguments: str) -> tuple[float, Samples]:
    """-> seconds, and what the model answered to each question."""
    output = folder / name / task
    command = ("run", "--include_path", str(folder), "--tasks", task, *arguments)
    command += ("--output_path", str(output), "--log_samples")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "dsconv.lm_eval",
            *command,
            *("--output_path", str(output), "--log_samples"),
        ],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "hf")},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        raise SystemExit(done.stderr)
    (results,) = output.glob("*/results_*.json")
    (samples,) = output.glob("*/samples_*.jsonl")
    rows = [json.loads(line) for line in samples.read_text("utf-8").splitlines()]
    figures = json.loads(results.read_text("utf-8"))
    return float(figures["total_evaluation_time_seconds"]), {r["doc_id"]: r["resps"] for r in rows}


def compare(found: Samples, expected: Samples) -> str:
    """Equal answers; of choices also the largest difference of a log-likelihood."""
    first = next(iter(expected.values()))[0][0]
    if isinstance(first, str):
        return f"{sum(found[i] == expected[i] for i in expected)} of {len(expected)} texts equal"
    sums = {i: [float(resp[0][0]) for resp in expected[i]] for i in expected}
    ours = {i: [float(resp[0][0]) for resp in found[i]] for i in expected}
    same = sum(sums[i].index(max(sums[i])) == ours[i].index(max(ours[i])) for i in sums)
    pairs = [pair for i in sums for pair in zip(sums[i], ours[i], strict=True)]
    most = max(abs(a - b) for a, b in pairs)
    mean = sum(abs(a - b) for a, b in pairs) / len(pairs)
    differ = f"log-likelihoods differ by {mean:.1e}, at most {most:.1e}"
    return f"{same} of {len(sums)} choices equal, {differ}"


def prompts_alone(artifact: str, folder: Path) -> str:
    """Seconds for the five-shot prompts, each computed as a whole, and together."""
    options = HarnessOptions(artifact)
    loaded = options.load()
    texts, batch = Texts(loaded, options), open_batch(loaded, options.batch_options())
    rows = {
        split: [json.loads(line) for line in (folder / f"gsm8k_{split}.jsonl").open("rb")]
        for split in ("train", "test")
    }
    ask = "Question: {question}\nAnswer:".format
    shots = "\n\n".join(f"{ask(**row)} {row['answer']}" for row in rows["train"][:5])
    requests = [Request(texts.encode(f"{shots}\n\n{ask(**row)}"), 1) for row in rows["test"]]
    start = time.perf_counter()
    for request in requests[:8]:
        run_all(batch, [request])
    alone = (time.perf_counter() - start) / len(requests[:8])
    reused: list[int] = []

    def told(index: int, outcome: Outcome) -> None:
        reused.append(outcome.reused)

    start = time.perf_counter()
    run_all(batch, requests, told)
    together = (time.perf_counter() - start) / len(requests)
    count = sum(len(request.tokens) for request in requests) / len(requests)
    return (
        f"prompts of {count:.0f} tokens, {sum(reused) / len(reused):.0f} of them reused: "
        f"{1e3 * alone:.0f} ms each alone, {1e3 * together:.0f} ms together "
        f"({together / alone:.2f} of it)"
    )


def measure(task: str, folder: Path, checkpoint: str, artifact: str) -> None:
    hf = ("--model", "hf", "--device", "cpu", "--model_args")
    hf += (f"pretrained={Path(checkpoint).resolve()},dtype=float32",)
    path = f"path={Path(artifact).resolve()}"
    ours, found = evaluate(folder, "ours", task, "--model", "dsconv", "--model_args", path)
    print(f"{task}: dsconv {ours:.1f} s", flush=True)
    for batch in ("1", "8"):
        theirs, expected = evaluate(folder, f"hf{batch}", task, *hf, "--batch_size", batch)
        times = f"{theirs:.1f} s ({theirs / ours:.1f} ×)"
        print(f"  hf, batch {batch}: {times}, {compare(found, expected)}", flush=True)


def main(
    checkpoint: str,
    artifact: str,
    texts: str,
    questions: str = "40",
    tokens: str = "64",
    *tasks: str,
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_gsm8k(folder, Path(texts, "gsm8k"), int(questions), int(tokens))
        story = Path(texts, "tinystories/train_sample_a.txt").read_text("utf-8")
        sentences = [f"{text.strip()}." for text in story.replace("\n", " ").split(".")]
        write_choices(folder, sentences[:1000], 100, before=6)
        for task in tasks or TASKS:
            if task == "prompts":
                print(prompts_alone(artifact, folder), flush=True)
            else:
                measure(task, folder, checkpoint, artifact)


if __name__ == "__main__":
    main(*sys.argv[1:])
