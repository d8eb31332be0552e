"""Ask a model every question of a task, many at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from dsconv.errors import InputError, UsageError
from dsconv.progress import Advance
from dsconv.runtime.batches.open import BatchOptions, open_batch
from dsconv.runtime.generate.answer import UserPrompt, prepare
from dsconv.runtime.generate.draft import Draft
from dsconv.runtime.generate.generate import Generation
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.scheduling.request import Request
from dsconv.runtime.scheduling.run_all import run_all
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.thinking import OPEN, split_thinking
from dsconv.runtime.text.tokenizer import TextTokenizer

from .answers import equivalent, final_answer
from .choices import Choice
from .majority import majority_of
from .questions import Question

SEED_STRIDE = 1_000_003  # every question and seed draws its own random numbers


@dataclass(frozen=True)
class Answered:
    """Of one question: is each answer right, is the one that most of them give; how many the limit
    of tokens ended (None where nothing was written)."""

    right: tuple[bool, ...]
    majority: bool
    cut: int | None = None


@dataclass(frozen=True)
class TaskOptions:
    """parallel: answers at once; 0 is as many as the runtime takes. shots: worked examples before
    each question. draft: guesses what comes next in the artifact's answers."""

    questions: int = 50
    seeds: int = 3
    max_tokens: int = 4096
    parallel: int = 0
    shots: int = 0
    temperature: float = 0.6
    top_p: float = 0.95
    draft: Draft | None = None

    def __post_init__(self) -> None:
        if min(self.questions, self.seeds, self.max_tokens) < 1:
            raise UsageError(
                "questions, seeds and tokens of a task must be positive", "use larger numbers"
            )
        if min(self.parallel, self.shots) < 0:
            raise UsageError("answers at once and examples are not negative", "0 is a default")


def ask_all(
    loaded: Loaded,
    questions: Sequence[Question],
    examples: Sequence[Sequence[Question]],
    options: TaskOptions,
    advance: Advance,
) -> list[Answered]:
    """What came of each question. A question and seed give the same answer in any company.

    Args:
        examples: of each question, which stand worked before it.
    """
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    asker = _Asker(loaded, tokenizer, options)
    asked = list(zip(questions, examples, strict=True))
    requests = [request for pair in asked for request in asker.requests(*pair)]
    generations = run_all(
        open_batch(loaded, BatchOptions(options.parallel, guesser=options.draft)),
        requests,
        lambda index, outcome: advance(1),
    )
    return asker.answered(generations)


class _Asker:
    """Makes the requests, and keeps what they gave."""

    def __init__(self, loaded: Loaded, tokenizer: TextTokenizer, options: TaskOptions) -> None:
        self._loaded, self._tokenizer, self._options = loaded, tokenizer, options
        self._questions: list[_Answers | _Likelihoods] = []

    def requests(self, question: Question, examples: Sequence[Question]) -> list[Request]:
        if question.choice is not None:
            return self._choose(question.choice, examples)
        return self._write(question, examples)

    def answered(self, generations: Sequence[Generation]) -> list[Answered]:
        """Given what came of all requests, in their order."""
        rest = iter(generations)
        return [kept.answered([*islice(rest, kept.count)]) for kept in self._questions]

    def _write(self, question: Question, examples: Sequence[Question]) -> list[Request]:
        before = "".join(f"{example.worked}\n\n" for example in examples)
        tokens, inside = thinking_prompt(self._loaded, self._tokenizer, before + question.prompt)
        index, options = len(self._questions), self._options
        self._questions.append(_Answers(question.answer, inside, self._tokenizer, options.seeds))
        seeds = (seed * SEED_STRIDE + index for seed in range(options.seeds))
        return [
            Request(
                tokens,
                options.max_tokens,
                Sampling(options.temperature, options.top_p, seed=seed),
                self._tokenizer.stop_ids,
            )
            for seed in seeds
        ]

    def _choose(self, choice: Choice, examples: Sequence[Question]) -> list[Request]:
        before = "".join(
            f"{example.choice.worked}\n\n" for example in examples if example.choice is not None
        )
        kept = _Likelihoods(choice)
        self._questions.append(kept)
        return [
            likelihood_request(self._tokenizer, before + choice.context, text, kept.values, index)
            for index, text in enumerate(choice.continuations)
        ]


@dataclass(frozen=True)
class _Answers:
    """Texts of one question, one per seed."""

    answer: str
    inside: bool
    tokenizer: TextTokenizer
    count: int

    def answered(self, generations: Sequence[Generation]) -> Answered:
        texts = [self.tokenizer.decode(each.tokens) for each in generations]
        cut = [each.stop_reason in ("length", "context") for each in generations]
        found = [
            final_answer(split_thinking(text, self.inside)[1], is_cut)
            for text, is_cut in zip(texts, cut, strict=True)
        ]
        return Answered(
            tuple(equivalent(answer, self.answer) for answer in found),
            equivalent(majority_of(found), self.answer),
            sum(cut),
        )


@dataclass
class _Likelihoods:
    """Logarithms of the probabilities of a question's continuations."""

    choice: Choice

    def __post_init__(self) -> None:
        self.values: dict[int, float] = {}

    @property
    def count(self) -> int:
        return len(self.choice.continuations)

    def answered(self, generations: Sequence[Generation]) -> Answered:
        scores = [self.values[index] for index in range(len(self.choice.texts))]
        if self.choice.is_ending:
            lengths = [len(text.encode()) for text in self.choice.continuations]
            scores = [score / length for score, length in zip(scores, lengths, strict=True)]
        is_right = int(np.argmax(scores)) == self.choice.right
        return Answered((is_right,), is_right)


def likelihood_request(
    tokenizer: TextTokenizer, context: str, continuation: str, found: dict[int, float], index: int
) -> Request:
    """A request that puts log P(continuation | context) into `found[index]`.

    The continuation's tokens are those that follow the context's in the text of both, as
    lm-evaluation-harness cuts them.
    """
    start = tokenizer.encode_prompt(context)
    whole = tokenizer.encode_prompt(context + continuation)
    if len(whole) <= len(start):
        raise InputError(
            f"{continuation[:40]!r} adds no token to the question", "the tokenizer joins them"
        )
    first = len(start) - 1  # its logits tell of the first token of the continuation
    found[index] = 0.0

    def add(position: int, logits: NDArray[np.float32]) -> None:
        for row, scores in enumerate(logits):
            following = position + row + 1
            if following < len(whole):
                found[index] += log_probability(scores, whole[following])

    return Request(whole[:-1], 0, on_prompt=add, prompt_logits_from=first)


def log_probability(logits: NDArray[np.float32], token: int) -> float:
    values = logits.astype(np.float64)
    top = values.max()
    return float(values[token] - top - np.log(np.exp(values - top).sum()))


def thinking_prompt(
    loaded: Loaded, tokenizer: TextTokenizer, prompt: str
) -> tuple[list[int], bool]:
    """-> (tokens, is `<think>` open at their end). A model that has a token for `<think>` is made
    to think, also where its template does not."""
    tokens, inside = prepare(tokenizer, loaded, UserPrompt(prompt))
    if not inside and len(tokenizer.encode(OPEN)) == 1:
        return [*tokens, *tokenizer.encode(f"{OPEN}\n")], True
    return tokens, inside
