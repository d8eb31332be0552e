"""Questions with one right answer: what share of them a model gets right.

A task file has rows (JSON lines, or an array): {"question", "answer"} as in GSM8K, whose answer
ends in `#### 18`; or {"problem", "solution"}; or {"prompt", "answer"}, whose prompt is given as it
is. Sampled as the R1 distills' model card asks: temperature 0.6, top-p 0.95, no system prompt,
`<think>` opened, several seeds.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

import numpy as np

from dsconv.errors import InputError, UsageError
from dsconv.progress import Advance
from dsconv.runtime.console import say
from dsconv.runtime.generate.answer import UserPrompt, prepare
from dsconv.runtime.generate.generate import complete
from dsconv.runtime.generate.sampling import Sampler, Sampling
from dsconv.runtime.sessions.load import Loaded
from dsconv.runtime.text.documents import Skipped
from dsconv.runtime.text.rows import Unusable, rows_of
from dsconv.runtime.text.text_file import open_text
from dsconv.runtime.text.thinking import OPEN, split_thinking
from dsconv.runtime.text.tokenizer import TextTokenizer

from .verdict import TaskScore

INSTRUCTION = "\nPlease reason step by step, and put your final answer within \\boxed{}."
NUMBER = re.compile(r"-?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")
MARK = "####"
ASKED = ("prompt", "question", "problem", "query", "instruction", "input")
TOLD = ("answer", "final_answer", "solution", "target", "output", "response", "completion")
FORMS = "question, problem or prompt, and answer or solution"
SEED_STRIDE = 1_000_003  # every question and seed draws its own random numbers


@dataclass(frozen=True)
class Question:
    prompt: str
    answer: str  # as `final_answer` gives it


@dataclass(frozen=True)
class TaskOptions:
    questions: int = 50
    seeds: int = 3
    max_tokens: int = 4096
    temperature: float = 0.6
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if self.questions < 1 or self.seeds < 1 or self.max_tokens < 1:
            raise UsageError(
                "questions, seeds and tokens of a task must be positive", "use larger numbers"
            )


def read_task(path: Path, limit: int) -> tuple[Question, ...]:
    """The first `limit` questions of a file; rows that hold none are skipped and named.

    Raises:
        InputError: it cannot be read, or too many of its rows are no questions.
    """
    found: list[Question] = []
    with open_text(path) as file:
        rows = rows_of(file)
        if rows is None:
            raise InputError(f"{path}: line 1: no question, but plain text", f"rows hold {FORMS}")
        skipped = Skipped(rows, known=FORMS)
        for index in range(len(rows)):
            try:
                value = rows.value(index)
                if value is not None:
                    found.append(read_question(value))
                    skipped.use()
            except Unusable as error:
                skipped.skip(index, error)
            if len(found) == limit:
                break
        skipped.finish(say)
    return tuple(found)


def read_question(value: Any) -> Question:
    """Raises Unusable: no question, or none with an answer of its own."""
    if not isinstance(value, dict):
        raise Unusable("not an object", form=True)
    row = {key.lower(): item for key, item in value.items()} | value
    if isinstance(row.get("row"), dict):  # as the hub's viewer has it
        return read_question(row["row"])
    if any(row.get(key) for key in ("choices", "options")) or {"a", "b", "c"} <= set(row):
        raise Unusable("a choice between answers, which would not be shown", form=True)
    asked = next((key for key in ASKED if row.get(key) is not None), None)
    told = next((key for key in TOLD if row.get(key) is not None), None)
    if asked is None or told is None:
        keys = ", ".join(map(repr, list(value)[:12])) or "none"
        raise Unusable(f"its keys are {keys}: no question with an answer", form=True)
    question, answer = row[asked], row[told]
    if not isinstance(question, str) or not question.strip():
        raise Unusable(f"{asked} is no text, or empty")
    if isinstance(answer, list) and len(answer) == 1:
        answer = answer[0]
    if isinstance(answer, bool) or not isinstance(answer, str | int | float):
        raise Unusable(f"{told} is neither text nor a number")
    text = str(answer).rpartition(MARK)[2]
    right = final_answer(text) or _normalized(text)
    if not right:
        raise Unusable(f"{told} is empty")
    return Question(question if asked == "prompt" else question + INSTRUCTION, right)


def final_answer(text: str) -> str | None:
    """What a text ends up with: the last \\boxed{…}, or else the last number; None without."""
    boxed = _last_boxed(text)
    if boxed is not None:
        return _normalized(boxed)
    numbers = NUMBER.findall(text)
    return _normalized(numbers[-1]) if numbers else None


def _last_boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    begin = start + len("\\boxed{")
    depth = 1
    for index in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[begin:index]
    return None


def _normalized(answer: str) -> str:
    """One way to write a number; other answers without spaces, dollars and text marks."""
    plain = re.sub(r"\\(?:text|mathrm|mbox)\{([^{}]*)\}", r"\1", answer)
    plain = re.sub(r"\\[,!;$%]|[\s$]|\\(?:left|right)", "", plain).rstrip(".%")
    try:
        number = Decimal(plain.replace(",", ""))
    except InvalidOperation:
        return plain.replace("dfrac", "frac")
    return f"{number.normalize():f}" if number.is_finite() else plain


def run_task(
    file: Path,
    artifact: Loaded,
    reference: Loaded | None,
    options: TaskOptions,
    advance: Advance = lambda answers: None,
) -> TaskScore:
    """Ask everything of the artifact, and of the reference where one is given.

    Args:
        advance: told of every answer.
    """
    questions = read_task(file, options.questions)
    accuracy, stderr = share_right(_ask_all(artifact, questions, options, advance))
    other = None
    if reference is not None:
        other = share_right(_ask_all(reference, questions, options, advance))
    return TaskScore(
        file.name,
        len(questions),
        options.seeds,
        accuracy,
        stderr,
        other[0] if other else None,
        other[1] if other else None,
    )


def share_right(right: Sequence[Sequence[bool]]) -> tuple[float, float]:
    """[questions][seeds] -> (share, its standard error).

    The answers to one question go together, so questions are what is drawn at random: the error
    is that of the mean over questions of each one's share. One question alone says nothing: 0.5.
    """
    shares = np.array([np.mean(seeds) for seeds in right])
    count = len(shares)
    error = float(shares.std(ddof=1)) / math.sqrt(count) if count > 1 else 0.5
    return float(shares.mean()), error


def _ask_all(
    loaded: Loaded, questions: Sequence[Question], options: TaskOptions, advance: Advance
) -> list[list[bool]]:
    tokenizer = TextTokenizer(loaded.side_files, loaded.config)
    found = []
    for index, question in enumerate(questions):
        right = []
        for seed in range(options.seeds):
            chosen = Sampling(options.temperature, options.top_p, seed=seed * SEED_STRIDE + index)
            text = ask(loaded, tokenizer, question.prompt, chosen, options.max_tokens)
            right.append(final_answer(text) == question.answer)
            advance(1)
        found.append(right)
    return found


def ask(
    loaded: Loaded, tokenizer: TextTokenizer, prompt: str, sampling: Sampling, max_tokens: int
) -> str:
    """The answer without thoughts; empty where the thoughts have no end.

    A model that has a token for `<think>` is made to think, also where its template does not.
    """
    tokens, inside = prepare(tokenizer, loaded, UserPrompt(prompt))
    if not inside and len(tokenizer.encode(OPEN)) == 1:
        tokens, inside = [*tokens, *tokenizer.encode(f"{OPEN}\n")], True
    loaded.session.reset()
    written = complete(loaded.session, tokens, Sampler(sampling), tokenizer.stop_ids, max_tokens)
    return split_thinking(tokenizer.decode(written.tokens), inside)[1]
