"""Calibration text that the model writes itself, from built-in prompts: no data, no network.

Many documents grow at once, one per slot (see `generating_ops.py`): at every step a slot is fed
the next token of its prompt or, after the prompt, the token just sampled. A finished document is
followed by the next prompt, so there is neither prefill nor padding, and what a slot was fed is a
whole number of windows.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from itertools import cycle

import torch

from ..convert.calibrated import forward_dtype
from ..convert.checkpoint import Checkpoint, generation_config
from ..convert.families.base import DecoderConfig
from ..convert.generating_ops import GeneratingOps, SlotCache, WeightPieces
from ..convert.json_file import parse_json
from ..convert.parallel import Workers, single_threaded_libraries
from ..errors import InputError
from .chat import Message, chat_template, render_chat
from .sampling import CANDIDATE_GROWTH, FIRST_CANDIDATES, Sampling, from_generation_config
from .thinking import CLOSE, OPEN, opens_thinking
from .tokenizer import TextTokenizer

PROMPTS = "calibration_prompts.jsonl"
FALLBACK_TEMPERATURE, FALLBACK_TOP_P = 0.6, 0.95  # for a model that recommends nothing
MAX_SLOTS = 64  # more would hardly raise the rate, and cost memory
MAX_DOCUMENT = 1024  # tokens
MAX_CACHE_BYTES = 2**30
MAX_HELD_BYTES = 4 * 2**30  # of weights; those of larger models are read again for every step

Advance = Callable[[int], None]


@dataclass(frozen=True)
class Layout:
    """How many documents grow at once, and how many tokens each slot and document gets at most."""

    slots: int
    slot_tokens: int
    document_tokens: int


def self_windows(
    checkpoint: Checkpoint,
    count: int,
    size: int,
    threads: int,
    advance: Advance = lambda tokens: None,
    max_held_bytes: int = MAX_HELD_BYTES,
) -> list[list[int]]:
    """`count` windows of `size` tokens, sampled with the settings that the model recommends.

    They do not depend on the number of threads nor on `max_held_bytes`, but on the machine.

    Args:
        advance: told the number of tokens written.
        max_held_bytes: weights up to this size are kept in memory.

    Raises:
        InputError: the tokenizer belongs to another model, or the model gives NaN.
    """
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    dtype = forward_dtype()
    token_bytes = SlotCache.bytes_per_token(checkpoint.decoder.config, dtype)
    layout = plan_layout(checkpoint.decoder.config, count, size, token_bytes)
    hold = checkpoint.parameter_count * dtype.itemsize <= max_held_bytes
    streams = write_streams(
        Writer(checkpoint, WeightPieces(checkpoint, dtype, hold), layout, tokenizer.stop_ids),
        prompts_of(checkpoint, tokenizer),
        recommended_sampling(checkpoint),
        threads,
        advance,
    )
    windows = [
        stream[start : start + size]
        for stream in streams
        for start in range(0, layout.slot_tokens, size)
    ]
    return windows[:count]


def plan_layout(config: DecoderConfig, count: int, size: int, token_bytes: int) -> Layout:
    """As many slots as are fast and leave the cache below its limit, each with whole windows."""
    depth = -(-count // MAX_SLOTS)  # windows of a slot
    while True:
        document = min(MAX_DOCUMENT, depth * size, config.max_position_embeddings)
        slots = -(-count // depth)
        if slots == 1 or slots * document * token_bytes <= MAX_CACHE_BYTES:
            return Layout(slots, depth * size, document)
        depth += 1


def recommended_sampling(checkpoint: Checkpoint) -> Sampling:
    """The model's own settings; greedy text would repeat itself, so never those."""
    own = from_generation_config(generation_config(checkpoint.side_files))
    if own.temperature:
        return own
    return replace(own, temperature=FALLBACK_TEMPERATURE, top_p=FALLBACK_TOP_P)


def built_in_prompts() -> list[list[Message]]:
    """Conversations whose next turn is the model's; the topics take turns."""
    text = resources.files("dsconv.runtime").joinpath(PROMPTS).read_text("utf-8")
    entries = [parse_json(line, PROMPTS) for line in text.splitlines()]
    return [
        [
            Message("assistant" if index % 2 else "user", turn)
            for index, turn in enumerate(entry["turns"])
        ]
        for entry in entries
    ]


def prompts_of(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> list[list[int]]:
    """The built-in prompts as the model wants them: by its chat template, with `<think>` opened.

    Without a chat template they are plain text.

    Raises:
        InputError: the template fails, or the model lacks tokens of its tokenizer.
    """
    template = chat_template(checkpoint.side_files)
    prompts = []
    for messages in built_in_prompts():
        if template is None:
            text = "\n".join(message.content for message in messages) + "\n"
            tokens = tokenizer.encode_prompt(text)
        else:
            text = render_chat(template, messages, tokenizer.special_tokens)
            if _thinks(template, tokenizer) and not _decided(text):
                text += f"{OPEN}\n"
            tokens = tokenizer.encode_chat(text)
        prompts.append(tokens)
    vocabulary = checkpoint.decoder.config.vocab_size
    wrong = [token for tokens in prompts for token in tokens if token >= vocabulary]
    if wrong or not all(prompts):
        what = f"gives token {wrong[0]}" if wrong else "gives no tokens for the prompts"
        raise InputError(
            f"{checkpoint.origin}: tokenizer.json {what}, the model has {vocabulary}",
            "tokenizer.json belongs to another model; copy it from the original",
        )
    return prompts


def _thinks(template: str, tokenizer: TextTokenizer) -> bool:
    """A reasoning model has a token for `<think>`, and a template that knows of thoughts."""
    return len(tokenizer.encode(OPEN)) == 1 and (OPEN in template or CLOSE in template)


def _decided(rendered: str) -> bool:
    """The template itself has opened the thoughts, or closed them for an answer without."""
    return opens_thinking(rendered) or rendered.rstrip().endswith(CLOSE)


@dataclass(frozen=True)
class Writer:
    """What writes: the network, its weights, the shape of the work, and what ends a document."""

    checkpoint: Checkpoint
    weights: WeightPieces
    layout: Layout
    stop_ids: Collection[int]


def write_streams(
    writer: Writer,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    threads: int,
    advance: Advance = lambda tokens: None,
) -> list[list[int]]:
    """-> per slot, exactly `slot_tokens` tokens: prompts and what the model wrote, in turns.

    Raises:
        InputError: the model gives NaN or infinity.
    """
    layout, decoder = writer.layout, writer.checkpoint.decoder
    endless = cycle(prompts)
    slots = [_Slot(endless, layout, writer.stop_ids) for _ in range(layout.slots)]
    streams: list[list[int]] = [[] for _ in slots]
    sampler = SlotSampler(sampling)
    cache = SlotCache(decoder.config, layout.slots, layout.document_tokens, writer.weights.dtype)
    with single_threaded_libraries(), Workers(threads) as workers, torch.inference_mode():
        for _ in range(layout.slot_tokens):
            tokens, positions = [slot.token for slot in slots], [slot.position for slot in slots]
            ops = GeneratingOps(tokens, positions, writer.weights, cache, workers)
            sampled = sampler.choose(decoder.forward(ops)[:, 0].float())
            for slot, stream, token in zip(slots, streams, sampled, strict=True):
                stream.append(slot.token)
                slot.go_on(token)
            advance(layout.slots)
    return streams


class _Slot:
    """One growing document: the token to feed next, and its position in the document."""

    def __init__(
        self, prompts: Iterator[Sequence[int]], layout: Layout, stop_ids: Collection[int]
    ) -> None:
        self._prompts = prompts
        self._limit = layout.document_tokens
        self._stop_ids = stop_ids
        self._begin()

    def _begin(self) -> None:
        self._prompt = next(self._prompts)
        self.position = 0
        self.token = self._prompt[0]

    def go_on(self, sampled: int) -> None:
        """After a step: the rest of the prompt, then what was sampled; then the next prompt."""
        written = self.position >= len(self._prompt)
        self.position += 1
        if self.position == self._limit or (written and self.token in self._stop_ids):
            self._begin()
        elif self.position < len(self._prompt):
            self.token = self._prompt[self.position]
        else:
            self.token = sampled


class SlotSampler:
    """Draws a token for every slot; the same seed and the same logits give the same tokens."""

    def __init__(self, sampling: Sampling) -> None:
        self._sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    def choose(self, logits: torch.Tensor) -> list[int]:
        """Tokens for logits [slots, vocabulary], float32.

        Raises:
            InputError: the logits hold NaN or infinity.
        """
        if not torch.isfinite(logits.amax(-1)).all():  # NaN is greater than every number
            raise InputError(
                "the model produced NaN or infinity while it wrote calibration text",
                "the weights are damaged; download the checkpoint again",
            )
        if self._sampling.temperature == 0:
            return [int(token) for token in logits.argmax(-1)]
        tokens, probabilities = candidates(logits, self._sampling)
        cumulative = probabilities.cumsum(-1)
        drawn = torch.rand(len(logits), 1, generator=self._random) * cumulative[:, -1:]
        # Rounding may carry the draw to the last sum: take the last token that has a probability.
        last = (probabilities > 0).long().cumsum(-1).argmax(-1, keepdim=True)
        index = torch.searchsorted(cumulative, drawn, right=True).minimum(last)
        return [int(token) for token in tokens.gather(-1, index)[:, 0]]


def candidates(logits: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens that may be chosen -> ids and weights [slots, candidates]; weight 0 is never chosen.

    Temperature, top-k, then top-p: the fewest likeliest tokens whose probabilities reach top_p.
    """
    # The largest comes off before the division: no temperature can overflow it.
    scaled = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    tokens = torch.arange(scaled.shape[-1]).expand_as(scaled)
    if 0 < sampling.top_k < scaled.shape[-1]:
        scaled, tokens = scaled.topk(sampling.top_k)
    total = scaled.logsumexp(-1, keepdim=True)
    if sampling.top_p == 1:
        return tokens, (scaled - total).exp()
    size = FIRST_CANDIDATES
    while True:
        size = min(size, scaled.shape[-1])
        best, indices = scaled.topk(size)
        probabilities = (best - total).exp()
        if size == scaled.shape[-1] or bool((probabilities.sum(-1) >= sampling.top_p).all()):
            before = probabilities.cumsum(-1) - probabilities
            kept = torch.where(before < sampling.top_p, probabilities, 0)
            return tokens.gather(-1, indices), kept
        size *= CANDIDATE_GROWTH
