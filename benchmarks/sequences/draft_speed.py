"""What a draft brings: tokens/s with and without it, in turn, on the texts that are given.

    python benchmarks/sequences/draft_speed.py ARTIFACT SMALL TEXT [TEXT …] [--tokens 192]
        [--rounds 3]
        [--temperature 0] [--characters 1500]

Each TEXT is a file whose beginning is the prompt; of a .jsonl file, what its first row says. Prints
the medians, how many guesses were right, and whether all tokens are those without a draft.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path

from dsconv.runtime.generate.draft import Draft, draft_for
from dsconv.runtime.generate.generate import complete
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.text.tokenizer import TextTokenizer


def words(value: object) -> str:
    """All strings of a row, one after the other."""
    if isinstance(value, dict):
        return " ".join(words(item) for item in value.values())
    if isinstance(value, list):
        return " ".join(words(item) for item in value)
    return str(value)


def beginning(path: Path, characters: int) -> str:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        text = words(json.loads(text.splitlines()[0]))
    return text[:characters]


def generate(
    loaded: Loaded, draft: Draft | None, prompt: list[int], sampling: Sampling, tokens: int
) -> tuple[float, tuple[int, ...], str]:
    """-> (tokens per second, tokens, right of guessed)."""
    loaded.session.reset()
    session = draft.guessing(loaded.session) if draft else loaded.session
    done = complete(session, prompt, Sampler(sampling), (), tokens)
    right = f"{session.accepted} of {session.proposed}" if draft else ""
    return done.decode_tokens_per_second, done.tokens, right


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("small", type=Path)
    parser.add_argument("texts", type=Path, nargs="+")
    parser.add_argument("--tokens", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--characters", type=int, default=1500)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    loaded, small = (load(path, threads=asked.threads) for path in (asked.artifact, asked.small))
    draft = draft_for(loaded, small, str(asked.small))
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    sampling = Sampling(asked.temperature, seed=1)
    for path in asked.texts:
        prompt = tokenizer.encode_prompt(beginning(path, asked.characters))
        runs = [
            [generate(loaded, guess, prompt, sampling, asked.tokens) for guess in (None, draft)]
            for _ in range(asked.rounds)
        ]
        alone, drafted = (statistics.median(run[i][0] for run in runs) for i in (0, 1))
        same = len({found[1] for run in runs for found in run}) == 1
        print(
            f"{path.name}: {alone:.1f} -> {drafted:.1f} tokens/s (× {drafted / alone:.2f}), "
            f"{runs[-1][1][2]} right, {'same tokens' if same else 'OTHER TOKENS'}",
            flush=True,
        )


if __name__ == "__main__":
    main()
