"""How long a smaller model goes on guessing: what its confidence, acceptance and costs say.

A round guesses k tokens and checks them in one pass. Each further guess is made while the chance
that it is reached and right, times what a token of the model alone costs, is more than a step of
the draft and a wider pass. How often a guess is right is known from those before with a like
probability in the draft's eyes.

Whether there are rounds at all is decided by what the last ones gave for their time. Rounds that
only find out whether it pays again are paid from an allowance, a small share of all time.

Where the text stood like this before, what followed then is a guess that costs no step at all.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from .pass_costs import KEPT, PassCosts
from .right_guesses import AS_CONFIDENT, RightGuesses, confidence_kind

MOST = 12  # tokens of a guess
MOST_COPIED = 16
COPIES = (0.2, 0.4, 0.6)  # right ones before any, by the tokens that agree: 2, 3, 4
BUDGET = 0.01  # of the time so far, for rounds that do not pay
CREDIT = 1.5  # tokens' time to begin with
WARMUP = 2  # tokens of the model alone, to time it
READING = 0.15  # of a draft step: reading a token of many, before it was timed
DRAFT = 0.3  # of a pass of the model: a draft step, before it was timed
ANY = 0.7  # share of right guesses, before any
GAIN, GAIN_WEIGHT = 1.1, 4.0  # of rounds before any; in tokens' time
MEMORY = 0.9  # weight of a round against the next one
FEWEST_READ = 16  # tokens of the text, its last ones, that a draft begins with
WORTH_READING = 4  # times what it has of the text, or all of it: then it begins again


@dataclass(frozen=True)
class Shares:
    """How often guesses were right: those of the draft by its confidence, all of them against what
    that says, and copies by the tokens that agreed."""

    guesses: RightGuesses = field(default_factory=lambda: RightGuesses(AS_CONFIDENT))
    any: RightGuesses = field(default_factory=lambda: RightGuesses([ANY]))
    copies: RightGuesses = field(default_factory=lambda: RightGuesses(COPIES))

    def note_guesses(self, confidences: Sequence[float], right: int) -> None:
        """Of a text: `right` guesses were right, and the next one, if any, was not.

        Args:
            confidences: of the guesses whose outcome is known.
        """
        for number, confidence in enumerate(confidences):
            self.guesses.note(confidence_kind(confidence), number < right)
            self.any.note(0, number < right)

    def note_copies(self, agree: int, right: int, wrong: bool) -> None:
        for hit in (*[True] * right, *[False] * wrong):
            self.copies.note(agree - 2, hit)


class DraftLength:
    """Told of everything that took time; says how long to guess, and how much to read for it.

    Times are those of a text alone, or of several that get their next tokens together: a pass over
    "one token" then has one of each, and what a round gives is their mean.
    """

    def __init__(self, shares: Shares | None = None, most: int = MOST) -> None:
        self.shares, self._most = shares or Shares(), most
        self._costs = PassCosts()
        self._draft: deque[float] = deque(maxlen=KEPT)  # of a step
        self._reading: deque[float] = deque(maxlen=KEPT)  # of a token
        self._plain = 0  # tokens of the model alone
        self._seconds = 0.0  # of everything
        self._spent = 0.0  # of the allowance
        self._saved = 0.0  # by rounds, over the model alone, less what was read for them
        # Of the last rounds, in tokens of the model alone: what they gave and took.
        self._gave, self._took = GAIN * GAIN_WEIGHT, GAIN_WEIGHT
        self._round = 0.0  # seconds of the one that is checked now
        self._pays = True  # it was begun because rounds do

    @property
    def gain(self) -> float:
        """Of the last rounds: tokens per second over those of the model alone."""
        return self._gave / self._took

    def copied(self, agree: int, room: int) -> int:
        """Tokens to copy from where the last `agree` tokens stood before; 0: ask the draft."""
        if self._plain < WARMUP:
            return 0
        share = self.shares.copies.share(agree - 2)
        best, most = 0, max(1.0, self.gain)
        tokens, chance = 1.0, 1.0
        for count in range(1, min(MOST_COPIED, room) + 1):
            chance *= share
            tokens += chance
            gain = tokens * self._costs.alone / self._costs.cost(count + 1)
            if gain > most:
                best, most = count, gain
        return best

    def begin(self, behind: int, room: int) -> bool:
        """Whether the draft shall guess; behind: tokens that it would read first."""
        if self._plain < WARMUP or room < 1:
            return False
        reading = self._read_cost() * behind if behind > 2 else 0.0
        self._pays = self.gain > 1 and reading <= max(self._allowance(), self._saved / 2)
        return self._pays or self._allowance() > self._step() + self._costs.wider + reading

    def goes_on(self, count: int, room: int, chance: float) -> bool:
        """Whether to guess another one after `count`, all of them right with this chance."""
        if count >= min(self._most, room):
            return False
        gain = chance * self.shares.any.share(0) * self._costs.alone
        return gain > self._step() + self._costs.wider

    def chance(self, confidence: float) -> float:
        """That a guess is right to which the draft gives this probability."""
        return self.shares.guesses.share(confidence_kind(confidence))

    def is_worth_checking(self, chance: float) -> bool:
        return chance * self._costs.alone > self._costs.wider

    def reads_again(self, text: int, has: int, behind: int) -> int:
        """Tokens of the end of a text that the draft shall begin again with; 0: it goes on.

        Args:
            text: tokens of it. has: those that the draft has read. behind: those after them.
        """
        each = self._read_cost()
        affordable = int(self._allowance() / (2 * each)) if each else 0
        end = min(text, max(FEWEST_READ, affordable))
        if not has:
            return end
        if self.gain > 1 and has + behind < text:  # more of the text makes better guesses
            most = min(text, int(self._saved / (2 * each))) if each else 0
            if most == text or most >= WORTH_READING * has:
                return most
        return end if behind > max(2, end) and self._read_cost() * behind > self._saved / 2 else 0

    def plain(self, seconds: float) -> None:
        """A token of the model alone."""
        self._costs.note(1, seconds)
        self._plain += 1
        self._seconds += seconds

    def drafted(self, guesses: int, behind: int, seconds: float) -> None:
        """What guesses took, and reading before them."""
        read = 0.0
        if behind <= 2:
            self._draft.append(seconds / guesses)
        elif self._draft:  # the first guess comes with what is read
            read = max(0.0, seconds - guesses * self._step())
            self._reading.append(read / behind)
        else:
            read = seconds * READING * behind / (READING * behind + guesses)
        self._round = seconds - read
        self._seconds += self._round
        self._pay_reading(read)

    def read(self, tokens: int, seconds: float) -> None:
        """What reading took, apart from guesses."""
        self._reading.append(seconds / tokens)
        self._pay_reading(seconds)

    def checked(self, guesses: int, seconds: float) -> None:
        """The pass over them."""
        self._costs.note(guesses + 1, seconds)
        self._seconds += seconds
        self._round += seconds

    def unchecked(self) -> None:
        """The guess was not worth a wider pass."""
        self.end_round(0.0, drafted=True)

    def end_round(self, tokens: float, drafted: bool) -> None:
        """What it gave in all; drafted: the draft guessed, not the text itself."""
        alone = self._costs.alone
        took = self._round / alone if alone else 0.0
        self._round = 0.0
        self._saved += (tokens - took) * alone
        if drafted:
            self._gave = MEMORY * self._gave + tokens
            self._took = MEMORY * self._took + took
            if not self._pays:
                self._spent += max(0.0, (took - tokens) * alone)

    def _pay_reading(self, seconds: float) -> None:
        self._seconds += seconds
        if self._saved >= seconds:
            self._saved -= seconds
        else:
            self._spent += seconds

    def _allowance(self) -> float:
        return CREDIT * self._costs.alone + BUDGET * self._seconds - self._spent

    def _step(self) -> float:
        return median(self._draft) if self._draft else DRAFT * self._costs.alone

    def _read_cost(self) -> float:
        return median(self._reading) if self._reading else READING * self._step()
