"""How many tokens a smaller model shall guess: what acceptance and costs, measured on the way, say.

A round guesses k tokens and checks them in one pass. With a share a of right guesses it gives
(1 - a^(k+1)) / (1 - a) tokens on the average (Leviathan et al. 2023), and costs k draft steps and a
pass over k + 1 tokens. The k that gives most per second is taken; none, where that is slower than
the model alone. Rounds that only find that out are paid from a budget, a small share of all time.
"""

from __future__ import annotations

from collections import deque
from statistics import median

MOST = 8  # tokens of a guess
PRIOR, PRIOR_TRIALS = 0.7, 4.0  # of the share of right guesses before any
MEMORY = 0.97  # weight of what was seen one trial earlier
FORGET = 0.01  # per token without a guess, towards the prior: a text may change
LEAST_GAIN = 1.03  # over the model alone
BUDGET = 0.015  # of the time so far, for rounds that do not pay
CREDIT = 5.0  # tokens' time to begin with
WARMUP = 2  # tokens of the model alone, to time it
KEPT = 5  # times of each kind; their median counts
WIDER = 0.05  # guess of what a further token in a pass adds, before it was timed
READING = 0.1  # of a draft step: reading a token of many


class DraftLength:
    """Told of everything that took time; says how long the next guess shall be."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._passes: dict[int, deque[float]] = {}  # by tokens of a pass
        self._draft: deque[float] = deque(maxlen=KEPT)
        self._right, self._trials = PRIOR * PRIOR_TRIALS, PRIOR_TRIALS
        self._plain = 0  # tokens of the model alone
        self._seconds = 0.0  # of everything
        self._saved = 0.0  # by guessing, over the model alone

    @property
    def acceptance(self) -> float:
        return self._right / self._trials

    def plain(self, seconds: float) -> None:
        """A token of the model alone."""
        self._note(1, seconds)
        self._plain += 1
        self._seconds += seconds
        keep = 1 - FORGET
        self._right = keep * self._right + FORGET * PRIOR * PRIOR_TRIALS
        self._trials = keep * self._trials + FORGET * PRIOR_TRIALS

    def checked(self, guessed: int, pass_seconds: float, draft_seconds: float, behind: int) -> None:
        """A round's costs; behind: tokens that the draft had to read first."""
        self._note(guessed + 1, pass_seconds)
        if behind <= 2:  # else it tells of reading, not of guessing
            self._draft.append(draft_seconds / guessed)
        self._seconds += pass_seconds + draft_seconds
        self._saved -= pass_seconds + draft_seconds

    def outcome(self, right: int, wrong: bool) -> None:
        """Of a round: guesses that were right, and whether one was wrong after them."""
        self._saved += (right + 1) * self._cost(1)
        for hit in (*[1.0] * right, *([0.0] if wrong else [])):
            self._right = MEMORY * self._right + hit
            self._trials = MEMORY * self._trials + 1

    def choose(self, behind: int, room: int) -> int:
        """Tokens to guess now, at most `room`; behind: those that the draft would read first."""
        if self._plain < WARMUP or room < 1:
            return 0
        alone, draft = self._cost(1), self._draft_cost()
        choices = range(1, min(self._most, room) + 1)
        best = max(choices, key=lambda k: self.tokens(k) / self._round(k, draft))
        gain = self.tokens(best) * alone / self._round(best, draft)
        loss = self._round(best, draft) + READING * draft * max(0, behind - 1) - alone
        if gain >= LEAST_GAIN and self._funds() > loss - (self.tokens(best) - 1) * alone:
            return best
        return 0

    def readable(self) -> int:
        """Tokens that the draft may read now, from what is there for rounds that do not pay."""
        cost = READING * self._draft_cost()
        return int(self._funds() / (2 * cost)) if cost > 0 else 0

    def tokens(self, guessed: int) -> float:
        """That a round gives on the average."""
        a = min(self.acceptance, 0.999)
        return float((1 - a ** (guessed + 1)) / (1 - a))

    def _funds(self) -> float:
        return CREDIT * self._cost(1) + BUDGET * self._seconds + self._saved

    def _round(self, guessed: int, draft: float) -> float:
        return guessed * draft + self._cost(guessed + 1)

    def _draft_cost(self) -> float:
        return median(self._draft) if self._draft else 0.3 * self._cost(1)

    def _note(self, tokens: int, seconds: float) -> None:
        self._passes.setdefault(tokens, deque(maxlen=KEPT)).append(seconds)

    def _cost(self, tokens: int) -> float:
        """Of a pass: as timed, or from the nearest shorter one that was."""
        if tokens in self._passes:
            return median(self._passes[tokens])
        nearest = max((n for n in self._passes if n < tokens), default=min(self._passes, default=0))
        if not nearest:
            return 0.0
        return median(self._passes[nearest]) * (1 + WIDER * max(0, tokens - nearest))
