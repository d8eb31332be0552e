"""Decode and prefill speed of an exported artifact against onnxruntime-genai on its own build.

    python benchmarks/decode_speed.py ARTIFACT GENAI_FOLDER [--rounds 6] [--context 64]

GENAI_FOLDER comes from `python -m onnxruntime_genai.models.builder -p int4 -e cpu ...` on the same
checkpoint. Every round runs each side once, in a process of its own, in alternating order; the
table has the medians over the rounds and the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

from dsconv.runtime.huge_pages import environment

WARM_UP = 4


def measure_dsconv(folder: str, context: int, tokens: int, threads: int) -> dict[str, float]:
    import numpy as np

    from dsconv.runtime.onnx_session import OnnxSession
    from dsconv.runtime.sampling import Sampler, Sampling

    start = time.perf_counter()
    session = OnnxSession(Path(folder), threads=threads)
    load = time.perf_counter() - start
    prompt = np.random.default_rng(0).integers(0, session.vocabulary - 300, context).tolist()
    sampler = Sampler(Sampling())
    session.prefill(prompt)
    session.reset()
    start = time.perf_counter()
    token = sampler.choose(session.prefill(prompt))
    prefill = time.perf_counter() - start
    steps = []
    for _ in range(tokens + WARM_UP):
        start = time.perf_counter()
        token = sampler.choose(session.decode(token))
        steps.append(time.perf_counter() - start)
    return summary(load, context / prefill, steps)


def measure_genai(folder: str, context: int, tokens: int, threads: int) -> dict[str, float]:
    import numpy as np
    import onnxruntime_genai as genai

    config = genai.Config(folder)
    overlay = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": overlay}}}))
    start = time.perf_counter()
    model = genai.Model(config)
    load = time.perf_counter() - start
    vocabulary = json.loads((Path(folder) / "genai_config.json").read_text())["model"]["vocab_size"]
    prompt = np.random.default_rng(0).integers(0, vocabulary - 300, context).astype(np.int32)

    def generator() -> object:
        parameters = genai.GeneratorParams(model)
        limit = context + tokens + WARM_UP + 4
        parameters.set_search_options(max_length=limit, min_length=limit, do_sample=False)
        return genai.Generator(model, parameters)

    warm = generator()
    warm.append_tokens(prompt)
    warm.generate_next_token()
    del warm
    run = generator()
    start = time.perf_counter()
    run.append_tokens(prompt)
    run.generate_next_token()
    prefill = time.perf_counter() - start
    steps = []
    for _ in range(tokens + WARM_UP):
        start = time.perf_counter()
        run.generate_next_token()
        steps.append(time.perf_counter() - start)
    return summary(load, context / prefill, steps)


def summary(load: float, prefill: float, steps: list[float]) -> dict[str, float]:
    steps = steps[WARM_UP:]
    return {
        "load_seconds": load,
        "prefill": prefill,
        "decode": 1 / statistics.median(steps),
        "decode_mean": len(steps) / sum(steps),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("genai")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--measure", choices=["dsconv", "genai"])
    arguments = parser.parse_args()
    if arguments.measure:
        measure, folder = {
            "dsconv": (measure_dsconv, arguments.artifact),
            "genai": (measure_genai, arguments.genai),
        }[arguments.measure]
        result = measure(folder, arguments.context, arguments.tokens, arguments.threads)
        print("RESULT " + json.dumps(result))
        return
    results: dict[str, list[dict[str, float]]] = {"dsconv": [], "genai": []}
    for index in range(arguments.rounds):
        order = ["dsconv", "genai"] if index % 2 == 0 else ["genai", "dsconv"]
        for side in order:
            output = subprocess.run(
                [sys.executable, *sys.argv, "--measure", side],
                capture_output=True,
                text=True,
                env=environment() if side == "dsconv" else None,  # as the command line does
            )
            lines = [line for line in output.stdout.splitlines() if line.startswith("RESULT ")]
            if not lines:
                sys.exit(output.stderr)
            results[side].append(json.loads(lines[0].removeprefix("RESULT ")))
    print(f"context {arguments.context}, {arguments.tokens} tokens, {arguments.threads} threads")
    print(f"{'figure':14}{'dsconv':>10}{'genai':>10}{'ratio':>8}  per-round ratios")
    for figure in ("load_seconds", "prefill", "decode", "decode_mean"):
        ours, theirs = ([r[figure] for r in results[side]] for side in ("dsconv", "genai"))
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        print(
            f"{figure:14}{statistics.median(ours):10.2f}{statistics.median(theirs):10.2f}"
            f"{statistics.median(ratios):8.2f}  " + " ".join(f"{ratio:.2f}" for ratio in ratios)
        )


if __name__ == "__main__":
    main()
