"""llama.cpp, from the package xllamacpp, in a process of its own: it may end the one it runs in.

Run as `python llama_cpp_process.py MODEL.gguf VOCABULARY` with prompts (token lists or texts) as
JSON on stdin, it prints the log-probabilities of the token after each prompt.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PLAIN_TOKEN = 40


def next_token_log_probabilities(
    model: Path, prompts: Sequence[str | Sequence[int]], vocabulary: int, exact: bool = False
) -> NDArray[np.float64]:
    """-> [prompts, vocabulary]; exact: with keys and values in float32."""
    done = subprocess.run(
        [sys.executable, __file__, str(model), str(vocabulary), *(["exact"] if exact else [])],
        input=json.dumps(prompts),
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return np.array(json.loads(done.stdout.splitlines()[-1]))


def _main(model: str, vocabulary: int, exact: bool) -> None:
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = model
    params.n_ctx, params.warmup, params.cpuparams.n_threads = 512, False, 1
    if exact:
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    server = xllamacpp.Server(params)
    rows = []
    for prompt in json.load(sys.stdin):
        # A plain token is forced: the answer to one that ends the text has no probabilities.
        # They are those before the bias.
        request = {"prompt": prompt, "n_predict": 1, "n_probs": vocabulary, "cache_prompt": False}
        answer = server.handle_completions({**request, "logit_bias": [[PLAIN_TOKEN, 1e6]]})
        row = [float("nan")] * vocabulary
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        rows.append(row)
    print(json.dumps(rows))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), "exact" in sys.argv[3:])
