"""Decode and prefill speed of an exported artifact against onnxruntime-genai on its own build.

    python benchmarks/decode_speed.py ARTIFACT GENAI_FOLDER [--rounds 4] [--bursts 12]

GENAI_FOLDER comes from `python -m onnxruntime_genai.models.builder -p int4 -e cpu ...` on the same
checkpoint. A round starts one process per side; both stay loaded and take turns, one burst of
tokens each, so that a change of the machine's memory speed meets both alike. The table has medians
over all bursts and the median of the ratios of neighbouring bursts.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dsconv.runtime.huge_pages import environment

Step = Callable[[], None]


def open_dsconv(folder: str, prompt: list[int], threads: int, limit: int) -> tuple[Step, float]:
    """-> (a function that decodes one token, seconds of the prefill)."""
    from dsconv.runtime.onnx_session import OnnxSession
    from dsconv.runtime.sampling import Sampler, Sampling

    session, sampler = OnnxSession(Path(folder), threads=threads), Sampler(Sampling())
    session.prefill(prompt)
    session.reset()
    start = time.perf_counter()
    token = sampler.choose(session.prefill(prompt))
    prefill = time.perf_counter() - start

    def step() -> None:
        nonlocal token
        token = sampler.choose(session.decode(token))

    return step, prefill


def open_genai(folder: str, prompt: list[int], threads: int, limit: int) -> tuple[Step, float]:
    """-> (a function that decodes one token, seconds of the prefill)."""
    import onnxruntime_genai as genai

    config = genai.Config(folder)
    session_options = {"intra_op_num_threads": threads}
    config.overlay(json.dumps({"model": {"decoder": {"session_options": session_options}}}))
    model = genai.Model(config)

    def generator() -> genai.Generator:
        parameters = genai.GeneratorParams(model)
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
    return run.generate_next_token, time.perf_counter() - start


def serve(side: str, folder: str, context: int, threads: int) -> None:
    """Load, say how long it took, then answer every line on stdin with the times of a burst."""
    import numpy as np

    prompt = np.random.default_rng(0).integers(0, 1000, context).tolist()
    opener = {"dsconv": open_dsconv, "genai": open_genai}[side]
    start = time.perf_counter()
    step, prefill = opener(folder, prompt, threads, context + 4096)
    print(json.dumps([time.perf_counter() - start, context / prefill]), flush=True)
    for line in sys.stdin:
        times = []
        for _ in range(int(line)):
            start = time.perf_counter()
            step()
            times.append(time.perf_counter() - start)
        print(json.dumps(1 / statistics.median(times)), flush=True)


class Peer:
    """One side's process."""

    def __init__(self, side: str, folder: str, context: int, threads: int) -> None:
        arguments = [side, folder, str(context), str(threads)]
        self._process = subprocess.Popen(
            [sys.executable, __file__, "--serve", *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment() if side == "dsconv" else None,  # as the command line does
        )
        self.load_seconds, self.prefill = self._answer()

    def burst(self, tokens: int) -> float:
        """-> tokens per second."""
        assert self._process.stdin is not None
        print(tokens, file=self._process.stdin, flush=True)
        return float(self._answer())

    def close(self) -> None:
        self._process.communicate()

    def _answer(self) -> Any:
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("genai")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--bursts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--context", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    sides = {"dsconv": a.artifact, "genai": a.genai}
    decode: dict[str, list[float]] = {side: [] for side in sides}
    prefill: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(a.rounds):
        peers = {side: Peer(side, folder, a.context, a.threads) for side, folder in sides.items()}
        for side, peer in peers.items():
            prefill[side].append(peer.prefill)
            peer.burst(a.tokens)  # warm
        for _ in range(a.bursts):
            for side, peer in peers.items():
                decode[side].append(peer.burst(a.tokens))
        for peer in peers.values():
            peer.close()
    print(f"context {a.context}, {a.rounds} x {a.bursts} bursts of {a.tokens} tokens")
    print(f"{'tokens/s':10}{'dsconv':>9}{'genai':>9}{'ratio':>7}   quartiles of the ratio")
    for figure, values in (("prefill", prefill), ("decode", decode)):
        ratios = [x / y for x, y in zip(values["dsconv"], values["genai"], strict=True)]
        medians = [statistics.median(values[side]) for side in sides]
        low, middle, high = statistics.quantiles(ratios, n=4)
        print(
            f"{figure:10}{medians[0]:9.1f}{medians[1]:9.1f}{middle:7.3f}   {low:.3f} .. {high:.3f}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], sys.argv[3], int(sys.argv[4]), int(sys.argv[5]))
    else:
        main()
