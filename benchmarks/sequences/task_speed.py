"""Questions of a task asked many at a time, beside one after the other, in one run.

    python benchmarks/sequences/task_speed.py ARTIFACT TASK [--questions 32] [--tokens 256]
        [--rounds 3]

Both write one answer per question, at temperature 0.6. "One after the other" is a session as `run`
has it: a prompt, then token by token.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from dsconv.runtime.generate.generate import complete
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.text.tokenizer import TextTokenizer
from dsconv.runtime.verify.tasks.ask import TaskOptions, ask_all, thinking_prompt
from dsconv.runtime.verify.tasks.questions import Question, read_task


def one_by_one(loaded: Loaded, questions: tuple[Question, ...], options: TaskOptions) -> int:
    """-> tokens written."""
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    written = 0
    for index, question in enumerate(questions):
        tokens, _ = thinking_prompt(loaded, tokenizer, question.prompt)
        loaded.session.reset()
        sampler = Sampler(Sampling(options.temperature, options.top_p, seed=index))
        done = complete(loaded.session, tokens, sampler, tokenizer.stop_ids, options.max_tokens)
        written += len(done.tokens)
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact")
    parser.add_argument("task", type=Path)
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    loaded = load(given.artifact, threads=2)
    options = TaskOptions(given.questions, 1, given.tokens)
    questions = read_task(given.task, given.questions)
    times: dict[str, list[float]] = {"one by one": [], "together": []}
    for _ in range(given.rounds):
        start = time.perf_counter()
        written = one_by_one(loaded, questions, options)
        times["one by one"].append(time.perf_counter() - start)
        start = time.perf_counter()
        ask_all(loaded, questions, [()] * len(questions), options, lambda count: None)
        times["together"].append(time.perf_counter() - start)
    alone, together = (statistics.median(times[key]) for key in times)
    print(f"{len(questions)} questions, {written} tokens one by one")
    print(f"one by one {alone:.1f} s, together {together:.1f} s: {alone / together:.2f} times")


if __name__ == "__main__":
    main()
