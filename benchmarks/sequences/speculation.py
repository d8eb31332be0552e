"""When prompt-lookup speculation pays: the cost of a wider pass, and tokens/s on two kinds of text.

    python benchmarks/sequences/speculation.py ARTIFACT [--rounds 5] [--tokens 160]

A pass over 1 + N tokens pays when it costs less than the tokens it saves. Both kinds of text are
generated greedily with N = 0, 2, 4, 8 in turn, so that a change of the machine meets all alike.
"""

from __future__ import annotations

import argparse
import statistics
import time

from dsconv.runtime.generate.answer import UserPrompt, prepare
from dsconv.runtime.generate.generate import complete
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.generate.speculation import SpeculativeSession
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.sessions.session import Session
from dsconv.runtime.text.tokenizer import TextTokenizer

COUNTS = (0, 2, 4, 8)
FUNCTION = """def area(shape):
    if shape.kind == "circle":
        return 3.14159 * shape.radius * shape.radius
    if shape.kind == "square":
        return shape.side * shape.side
    if shape.kind == "rectangle":
        return shape.width * shape.height
    raise ValueError("unknown shape: " + shape.kind)
"""
TEXTS = {
    "copies": f"Write this Python function again, exactly as it is:\n\n{FUNCTION}",
    "new": "Tell a story about a lighthouse keeper who finds a letter in a bottle.",
}


def pass_costs(session: Session, rounds: int) -> dict[int, float]:
    """Of `extend` over 1 + N tokens, relative to one step of `decode`; medians."""
    session.reset()
    session.prefill(list(range(3, 67)))
    times: dict[int, list[float]] = {count: [] for count in COUNTS}
    for _ in range(8 * rounds):
        for count in COUNTS:
            start = time.perf_counter()
            session.extend(list(range(3, 4 + count))) if count else session.decode(3)
            times[count].append(time.perf_counter() - start)
            session.truncate(64)
    one = statistics.median(times[0])
    return {count: statistics.median(values) / one for count, values in times.items()}


def generate(loaded: Loaded, prompt: list[int], count: int, tokens: int) -> tuple[float, str, int]:
    """-> (tokens per second, accepted of proposed, a number that tells texts apart)."""
    loaded.session.reset()
    session = SpeculativeSession(loaded.session, count) if count else loaded.session
    done = complete(session, prompt, Sampler(Sampling()), (), tokens)
    guesses = f"{session.accepted}/{session.proposed}" if count else ""
    return done.decode_tokens_per_second, guesses, hash(done.tokens)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("artifact")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--threads", type=int, default=2)
    a = parser.parse_args()
    loaded = load(a.artifact, threads=a.threads)
    costs = pass_costs(loaded.session, a.rounds)
    print("| N | " + " | ".join(map(str, COUNTS)) + " |\n" + "|---" * (len(COUNTS) + 1) + "|")
    print("| cost of a pass | " + " | ".join(f"{costs[count]:.2f}" for count in COUNTS) + " |")
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    for name, text in TEXTS.items():
        prompt, _ = prepare(tokenizer, loaded, UserPrompt(text))
        speeds: dict[int, list[float]] = {count: [] for count in COUNTS}
        guesses, texts = {}, {}
        for _ in range(a.rounds):
            for count in COUNTS:
                speed, guesses[count], texts[count] = generate(loaded, prompt, count, a.tokens)
                speeds[count].append(speed)
        ratios = {
            count: statistics.median(
                mine / plain for mine, plain in zip(speeds[count], speeds[0], strict=True)
            )
            for count in COUNTS
        }
        cells = [
            f"{statistics.median(speeds[c]):.0f} (× {ratios[c]:.2f}) {guesses[c]}"
            + ("" if texts[c] == texts[0] else " OTHER TEXT")
            for c in COUNTS
        ]
        print(f"| {name}, tokens/s | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
