"""Calibration text that the model writes itself, from what is built in: no data, no network.

Conversations are answered as the chat template has it. Between them stand short texts of other
kinds (encyclopedia, news, worked problems, code, Chinese prose), which the model carries on a
little: its answers alone do not show what such text does to its activations.

Many documents grow at once, one per slot (see `batch_generation.py`): at every step a slot is fed
the next token of its prompt or, after the prompt, the token just sampled. A finished document is
followed by the next prompt, so there is neither prefill nor padding, and what a slot was fed is a
whole number of windows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from itertools import cycle, zip_longest

import torch

from dsconv.convert.checkpoint.checkpoint import Checkpoint
from dsconv.convert.families.base import DecoderConfig
from dsconv.convert.files.json_file import parse_json
from dsconv.convert.forward.batch_generation import GeneratingOps, SlotCache, WeightPieces
from dsconv.convert.forward.torch_ops import forward_dtype
from dsconv.convert.forward.workers import Workers, single_threaded_libraries
from dsconv.errors import DsconvError, InputError
from dsconv.progress import Advance
from dsconv.runtime.generate.sampling import Sampling
from dsconv.runtime.text.chat_template import Message, chat_template, render_chats
from dsconv.runtime.text.thinking import CLOSE, OPEN, opens_thinking
from dsconv.runtime.text.tokenizer import TextTokenizer

PROMPTS = "calibration_prompts.jsonl"
TEXTS = "calibration_texts.jsonl"
CONTINUATION = 64  # tokens that the model adds to a text
# The model's own distribution. What models recommend (0.6, top-p 0.95 for the R1 distills) leaves
# out the rarer tokens that real text has: SmolLM2-135M at 4.5 bits, KL 0.081 against 0.076.
SAMPLING = Sampling(temperature=1.0)
MAX_SLOTS = 64  # more would hardly raise the rate, and cost memory
MAX_DOCUMENT = 1024  # tokens
SAMPLED_TOGETHER = 8  # slots, by one thread
MAX_CACHE_BYTES = 2**30
MAX_HELD_BYTES = 2**30  # of weights; those of larger models are read again for every step
MAX_WRITER_BYTES = 9 * 2**30  # of weights; larger models would write for hours


@dataclass(frozen=True)
class Prompt:
    """How a document begins, and how many tokens it has at most; None: as the layout says."""

    tokens: tuple[int, ...]
    limit: int | None = None


@dataclass(frozen=True)
class WriterLimits:
    """Bytes of weights: up to `held` stay in memory, above `written` the model writes nothing."""

    held: int = MAX_HELD_BYTES
    written: int = MAX_WRITER_BYTES


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
    limits: WriterLimits = WriterLimits(),
) -> list[list[int]]:
    """`count` windows of `size` tokens.

    Where the model is too large to write, the built-in texts and conversations stand alone, which
    may be fewer windows.

    They do not depend on the number of threads nor on what is held, but on the machine.

    Args:
        advance: told the number of tokens written.

    Raises:
        InputError: the tokenizer belongs to another model, or the model gives NaN.
    """
    tokenizer = TextTokenizer(checkpoint.side_files, checkpoint.config)
    dtype = forward_dtype()
    if checkpoint.parameter_count * dtype.itemsize > limits.written:
        return built_in_windows(checkpoint, tokenizer, count, size)
    token_bytes = SlotCache.bytes_per_token(checkpoint.decoder.config, dtype)
    layout = plan_layout(checkpoint.decoder.config, count, size, token_bytes)
    hold = checkpoint.parameter_count * dtype.itemsize <= limits.held
    streams = write_streams(
        Writer(checkpoint, WeightPieces(checkpoint, dtype, hold), layout, tokenizer.stop_ids),
        prompts_of(checkpoint, tokenizer),
        SAMPLING,
        threads,
        advance,
    )
    windows = [
        stream[start : start + size]
        for stream in streams
        for start in range(0, layout.slot_tokens, size)
    ]
    return windows[:count]


def built_in_windows(
    checkpoint: Checkpoint, tokenizer: TextTokenizer, count: int, size: int
) -> list[list[int]]:
    """What the prompts hold, document after document: at most `count` windows, at least one."""
    stream = [token for prompt in prompts_of(checkpoint, tokenizer) for token in prompt.tokens]
    whole = max(1, min(count, len(stream) // size))
    return [stream[index * size : (index + 1) * size] for index in range(whole)]


def why_it_cannot_write(checkpoint: Checkpoint) -> str | None:
    """What is wrong with the tokenizer or the chat template; None for nothing."""
    try:
        prompts_of(checkpoint, TextTokenizer(checkpoint.side_files, checkpoint.config))
    except DsconvError as error:
        return error.message
    return None


def plan_layout(config: DecoderConfig, count: int, size: int, token_bytes: int) -> Layout:
    """As many slots as are fast and leave the cache below its limit, each with whole windows."""
    depth = -(-count // MAX_SLOTS)  # windows of a slot
    while True:
        document = min(MAX_DOCUMENT, depth * size, config.max_position_embeddings)
        slots = -(-count // depth)
        if slots == 1 or slots * document * token_bytes <= MAX_CACHE_BYTES:
            return Layout(slots, depth * size, document)
        depth += 1


def built_in_prompts() -> list[list[Message]]:
    """Conversations whose next turn is the model's; the topics take turns."""
    text = resources.files("dsconv.runtime.calibration").joinpath(PROMPTS).read_text("utf-8")
    entries = [parse_json(line, PROMPTS) for line in text.splitlines()]
    return [
        [
            Message("assistant" if index % 2 else "user", turn)
            for index, turn in enumerate(entry["turns"])
        ]
        for entry in entries
    ]


def built_in_texts() -> list[str]:
    text = resources.files("dsconv.runtime.calibration").joinpath(TEXTS).read_text("utf-8")
    return [str(parse_json(line, TEXTS)["text"]) for line in text.splitlines()]


def prompts_of(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> list[Prompt]:
    """Texts and conversations by turns, then the conversations that are left.

    Raises:
        InputError: the template fails, or the model lacks tokens of its tokenizer.
    """
    conversations = [Prompt(tuple(tokens)) for tokens in conversations_of(checkpoint, tokenizer)]
    texts = [tuple(tokenizer.encode_prompt(text)) for text in built_in_texts()]
    prompts = []
    for text, conversation in zip_longest(texts, conversations):
        if text:
            prompts.append(Prompt(text, len(text) + CONTINUATION))
        if conversation:
            prompts.append(conversation)
    vocabulary = checkpoint.decoder.config.vocab_size
    wrong = [token for prompt in prompts for token in prompt.tokens if token >= vocabulary]
    if wrong or not all(prompt.tokens for prompt in prompts):
        what = f"gives token {wrong[0]}" if wrong else "gives no tokens for the prompts"
        raise InputError(
            f"{checkpoint.origin}: tokenizer.json {what}, the model has {vocabulary}",
            "tokenizer.json belongs to another model; copy it from the original",
        )
    return prompts


def conversations_of(checkpoint: Checkpoint, tokenizer: TextTokenizer) -> list[list[int]]:
    """The built-in ones as the model wants them: by its chat template, with `<think>` opened.

    Without a chat template they are plain text.
    """
    template, conversations = chat_template(checkpoint.side_files), built_in_prompts()
    if template is None:
        return [
            tokenizer.encode_prompt("\n".join(message.content for message in messages) + "\n")
            for messages in conversations
        ]
    prompts = []
    for text in render_chats(template, conversations, tokenizer.special_tokens):
        opens = _thinks(template, tokenizer) and not _decided(text)
        prompts.append(tokenizer.encode_chat(f"{text}{OPEN}\n" if opens else text))
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
    prompts: Sequence[Prompt],
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
    sampler = SlotSampler(sampling, layout.slots)
    cache = SlotCache(decoder.config, layout.slots, layout.document_tokens, writer.weights.dtype)
    with single_threaded_libraries(), Workers(threads) as workers, torch.inference_mode():
        for _ in range(layout.slot_tokens):
            tokens, positions = [slot.token for slot in slots], [slot.position for slot in slots]
            ops = GeneratingOps(tokens, positions, writer.weights, cache, workers)
            sampled = sampler.choose(decoder.forward(ops)[:, 0].float(), workers)
            for slot, stream, token in zip(slots, streams, sampled, strict=True):
                stream.append(slot.token)
                slot.go_on(token)
            advance(layout.slots)
    return streams


class _Slot:
    """One growing document: the token to feed next, and its position in the document."""

    def __init__(
        self, prompts: Iterator[Prompt], layout: Layout, stop_ids: Collection[int]
    ) -> None:
        self._prompts = prompts
        self._most = layout.document_tokens
        self._stop_ids = stop_ids
        self._begin()

    def _begin(self) -> None:
        prompt = next(self._prompts)
        self._prompt = prompt.tokens
        self._limit = self._most if prompt.limit is None else min(prompt.limit, self._most)
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

    def __init__(self, sampling: Sampling, slots: int) -> None:
        self._sampling = sampling
        starts = range(0, slots, SAMPLED_TOGETHER)
        self._random = {s: torch.Generator().manual_seed(sampling.seed + s) for s in starts}

    def choose(self, logits: torch.Tensor, workers: Workers) -> list[int]:
        """Tokens for logits [slots, vocabulary], float32.

        Raises:
            InputError: the logits hold NaN or infinity.
        """

        @torch.inference_mode()  # which counts for one thread only
        def some(start: int) -> list[int]:
            rows = logits[start : start + SAMPLED_TOGETHER]
            return draw(rows, self._sampling, self._random[start])

        return [token for part in workers.in_order(some, self._random) for token in part]


def draw(logits: torch.Tensor, sampling: Sampling, random: torch.Generator) -> list[int]:
    """A token for each of logits [rows, vocabulary]: temperature, top-k, then top-p.

    The nucleus of top-p are the tokens before which, going down from the likeliest, less than top_p
    lies. Drawing from all tokens until one of them is hit needs no sorting, and 1 / top_p draws.

    Raises:
        InputError: the logits hold NaN or infinity.
    """
    largest = logits.amax(-1, keepdim=True)
    if not torch.isfinite(largest).all():  # NaN is greater than every number
        raise InputError(
            "the model produced NaN or infinity while it wrote calibration text",
            "the weights are damaged; download the checkpoint again",
        )
    if sampling.temperature == 0:
        return [int(token) for token in logits.argmax(-1)]
    tokens = None
    if 0 < sampling.top_k < logits.shape[-1]:
        logits, tokens = logits.topk(sampling.top_k)
    # The largest comes off before the division: no temperature can overflow it.
    probabilities = ((logits - largest) / sampling.temperature).softmax(-1)
    sums = probabilities.cumsum(-1)
    chosen = torch.empty(len(logits), 1, dtype=torch.int64)
    rows = torch.arange(len(logits))
    while len(rows):
        last = sums[rows, -1:]
        # Rounding may carry the draw to the last sum: then it is the first token that reaches it.
        drawn = torch.rand(len(rows), 1, generator=random) * last
        drawn = torch.minimum(drawn, last.nextafter(torch.zeros(())))
        chosen[rows] = torch.searchsorted(sums[rows], drawn, right=True)
        if sampling.top_p >= 1:
            break
        of_row = probabilities[rows]
        likelier = of_row * (of_row > of_row.gather(-1, chosen[rows]))
        rows = rows[likelier.sum(-1) >= sampling.top_p]
    found = chosen if tokens is None else tokens.gather(-1, chosen)
    return [int(token) for token in found[:, 0]]
