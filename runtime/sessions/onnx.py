"""Run an exported graph on ONNX Runtime: prefill, decode, teacher-forced scores.

Everything a step needs is bound once. With GroupQueryAttention past and present are one buffer,
which grows by doubling, so a decode step copies no cache; standard graphs hand the present
tensors of one step to the next as past.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.atomic import MANIFEST
from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.files.local_files import safe_join
from dsconv.convert.formats.onnx.names import GENAI_CONFIG
from dsconv.errors import InputError

from .onnx_graph import graph_failures, open_graph
from .session import refuse_unknown_tokens

PREFILL_CHUNK = 256  # bounds the logits of a step: 256 * 152k * 4 bytes = 156 MB
FIRST_BUFFER = 512  # positions of the first cache buffer
PROBE_PREFILL, PROBE_DECODE = 16, 4  # tokens of the steps that are profiled

Element = type[np.floating[Any]]
# Of keys and values, by ONNX Runtime's name.
ELEMENTS: dict[str, Element] = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


@dataclass(frozen=True)
class GraphShape:
    """What genai_config.json says of the graph."""

    filename: str
    vocabulary: int
    context_length: int
    layers: int
    kv_heads: int
    head_dim: int
    shares_buffer: bool
    accuracy_level: int


def read_graph_shape(folder: Path) -> GraphShape:
    """Read genai_config.json and the accuracy level from the manifest.

    Raises:
        InputError: a file or key is missing or wrong.
    """
    reader = ConfigReader(read_json_object(folder / GENAI_CONFIG), str(folder / GENAI_CONFIG))
    model = reader.child("model")
    decoder = model.child("decoder") if model else None
    search = reader.child("search")
    if model is None or decoder is None or search is None:
        raise reader.fail("model.decoder, search", "missing")
    filename = decoder.string("filename")
    safe_join(folder, filename, f"{reader.where}: model.decoder.filename")
    return GraphShape(
        filename,
        model.integer("vocab_size", high=limits.VOCABULARY),
        model.integer("context_length", high=limits.POSITIONS),
        decoder.integer("num_hidden_layers", high=limits.LAYERS),
        decoder.integer("num_key_value_heads", high=limits.HIDDEN),
        decoder.integer("head_size", high=limits.HIDDEN),
        search.boolean("past_present_share_buffer", False),
        accuracy_level_of(folder),
    )


def accuracy_level_of(folder: Path) -> int:
    """Of products that ONNX Runtime fuses itself, from the manifest; 4 where there is none."""
    if not (folder / MANIFEST).exists():
        return 4
    manifest = ConfigReader(read_json_object(folder / MANIFEST), str(folder / MANIFEST))
    recipe = manifest.child("recipe")
    return recipe.integer("accuracy_level", 4, low=0, high=4) if recipe else 4


class OnnxSession:
    """One sequence on one graph. The array that `decode` returns is reused by the next call.

    provider: `NAME[:DEVICE]`, see providers.py. allow_fallback: the CPU may run what the provider
    leaves, and `placement` says what that is; it is None on the CPU. graph, shape, element: what a
    batch over the same graph needs (runtime/batches/onnx.py).
    """

    def __init__(
        self, folder: Path, provider: str = "cpu", threads: int = 0, allow_fallback: bool = False
    ) -> None:
        self._shape = self.shape = read_graph_shape(folder)
        level = self._shape.accuracy_level
        self._path = folder / self._shape.filename
        graph = open_graph(self._path, level, provider, threads, allow_fallback)
        self._session = self.graph = graph.session
        self._element = self.element = _check_graph(self._session, self._shape, folder)
        self._memory, self._device = (
            graph.choice.provider.memory or "cpu",
            graph.choice.device_index,
        )
        self._inputs = {node.name: node for node in self._session.get_inputs()}
        self._outputs = [node.name for node in self._session.get_outputs()]
        self._cache: _SharedCache | _GrowingCache
        self.reset()
        self.placement = graph.place(self._probe)

    def _probe(self) -> None:
        """A few steps to time: a prompt, and tokens one by one."""
        self.prefill([0] * min(PROBE_PREFILL, self.context_length // 2))
        for _ in range(min(PROBE_DECODE, self.context_length - self._position)):
            self.decode(0)
        self.reset()

    @property
    def vocabulary(self) -> int:
        return self._shape.vocabulary

    @property
    def context_length(self) -> int:
        return self._shape.context_length

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        """Forget the sequence."""
        self._position = 0
        kind = _SharedCache if self._shape.shares_buffer else _GrowingCache
        self._cache = kind(self._shape, self._element, self._memory, self._device)
        self._step = self._session.io_binding()
        self._step_token = np.zeros((1, 1), np.int64)
        self._step_logits = np.empty((1, 1, self.vocabulary), np.float32)
        self._step_bound = False

    @property
    def path(self) -> Path:
        return self._path

    @property
    def memory(self) -> str:
        """Where the cache lies: `cpu`, or as the provider calls its own."""
        return self._memory

    def wrapped(self, array: NDArray[Any]) -> Any:
        """An OrtValue over the array's own memory."""
        return _wrap(array)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append `tokens` -> logits [vocabulary] after the last."""
        last = np.empty(0, np.float32)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            last = self._run_chunk(tokens[start : start + PREFILL_CHUNK])[-1]
        return last.copy()

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens."""
        if length < self._position:
            self._cache.truncate(length)
            self._position = length

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """From an empty cache -> logits [tokens, vocabulary]."""
        self.reset()
        return self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append `tokens` -> logits [tokens, vocabulary]."""
        scores = np.empty((len(tokens), self.vocabulary), np.float32)
        for start in range(0, len(tokens), PREFILL_CHUNK):
            chunk = tokens[start : start + PREFILL_CHUNK]
            scores[start : start + len(chunk)] = self._run_chunk(chunk)
        return scores

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token -> logits [vocabulary], overwritten by the next call."""
        refuse_unknown_tokens((token,), self.vocabulary)
        binding = self._step
        moved = self._cache.reserve(self._position + 1)
        self._step_token[0, 0] = token
        if not self._step_bound:
            binding.bind_cpu_input("input_ids", self._step_token)
            binding.bind_ortvalue_output("logits", _wrap(self._step_logits))
            self._step_bound = moved = True
        self._bind_positions(binding, 1)
        self._cache.bind(binding, moved)
        with graph_failures(self._path):
            self._session.run_with_iobinding(binding)
        self._cache.take(binding, self._outputs)
        self._position += 1
        logits: NDArray[np.float32] = self._step_logits[0, 0]
        return logits

    def _run_chunk(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append a chunk -> logits [tokens, vocabulary]."""
        refuse_unknown_tokens(tokens, self.vocabulary)
        self._cache.reserve(self._position + len(tokens))
        binding = self._session.io_binding()
        binding.bind_cpu_input("input_ids", np.asarray(tokens, np.int64)[None])
        binding.bind_output("logits", "cpu")
        self._bind_positions(binding, len(tokens))
        self._cache.bind(binding, True)
        with graph_failures(self._path):
            self._session.run_with_iobinding(binding)
        logits: NDArray[np.float32] = binding.get_outputs()[0].numpy()[0]
        if logits.shape != (len(tokens), self.vocabulary):
            raise InputError(
                f"{self._path}: logits of shape {list(logits.shape)} for {len(tokens)} tokens",
                "export the artifact again",
            )
        self._cache.take(binding, self._outputs)
        self._step_bound = False
        self._position += len(tokens)
        return logits

    def _bind_positions(self, binding: Any, count: int) -> None:
        end = self._position + count
        binding.bind_cpu_input("attention_mask", np.ones((1, end), np.int64))
        if "position_ids" in self._inputs:
            positions = np.arange(self._position, end, dtype=np.int64)[None]
            binding.bind_cpu_input("position_ids", positions)


def cache_names(shape: GraphShape) -> list[tuple[str, str]]:
    """-> (input, output) name of every cache tensor."""
    return [
        (f"past_key_values.{layer}.{part}", f"present.{layer}.{part}")
        for layer in range(shape.layers)
        for part in ("key", "value")
    ]


class _SharedCache:
    """Past and present are the same memory [1, kv_heads, capacity, head_dim] per tensor.

    It lies where the provider computes, so that no step moves it.
    """

    def __init__(self, shape: GraphShape, element: Element, memory: str, device: int) -> None:
        self._shape, self._element = shape, element
        self._memory, self._device = memory, device
        self._names = cache_names(shape)
        self._capacity = 0
        self._values: list[Any] = []

    def reserve(self, length: int) -> bool:
        """Make room for `length` positions -> whether the buffers moved."""
        capacity = self._capacity
        if length <= capacity:
            return False
        wanted = max(FIRST_BUFFER, 2 * capacity, length)
        wanted = max(length, min(wanted, self._shape.context_length))
        shape = (1, self._shape.kv_heads, wanted, self._shape.head_dim)
        old = self._values or [None for _ in self._names]
        self._values = [self._grown(value, shape, capacity) for value in old]
        self._capacity = wanted
        return True

    def _grown(self, old: Any, shape: tuple[int, ...], filled: int) -> Any:
        array = np.zeros(shape, self._element)
        if old is not None:
            array[:, :, :filled] = old.numpy()
        return _wrap(array, self._memory, self._device)

    def bind(self, binding: Any, moved: bool) -> None:
        if not moved:
            return
        for (past, present), value in zip(self._names, self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_ortvalue_output(present, value)

    def take(self, binding: Any, outputs: list[str]) -> None:
        """Nothing to do: the new positions are already in the buffer."""

    def truncate(self, length: int) -> None:
        """Nothing to do: positions past the attention mask are not read, and written over."""


class _GrowingCache:
    """Every step returns a longer present, which is the next step's past."""

    def __init__(self, shape: GraphShape, element: Element, memory: str, device: int) -> None:
        self._names = cache_names(shape)
        self._memory, self._device = memory, device
        empty = np.zeros((1, shape.kv_heads, 0, shape.head_dim), element)
        self._values = [_wrap(empty, memory, device) for _ in self._names]

    def reserve(self, length: int) -> bool:
        return True

    def bind(self, binding: Any, moved: bool) -> None:
        for (past, present), value in zip(self._names, self._values, strict=True):
            binding.bind_ortvalue_input(past, value)
            binding.bind_output(present, self._memory, self._device)

    def take(self, binding: Any, outputs: list[str]) -> None:
        # Outputs come in the order in which they were bound: logits first, then the cache.
        self._values = list(binding.get_outputs())[1:]

    def truncate(self, length: int) -> None:
        kept = [np.ascontiguousarray(value.numpy()[:, :, :length]) for value in self._values]
        self._values = [_wrap(array, self._memory, self._device) for array in kept]


def _check_graph(session: Any, shape: GraphShape, folder: Path) -> Element:
    """The graph must be what genai_config.json says: buffers of other sizes would not fit it.

    -> element type of the cache, which only the graph says.
    """
    cache = {
        node.name: (node.type, *node.shape[1::2])
        for node in session.get_inputs()
        if node.name.startswith("past_key_values.")
    }
    names = [past for past, _ in cache_names(shape)]
    widths = [node.shape[-1] for node in session.get_outputs() if node.name == "logits"]
    for kind, element in ELEMENTS.items():
        row = (kind, shape.kv_heads, shape.head_dim)
        if cache == dict.fromkeys(names, row) and widths == [shape.vocabulary]:
            return element
    raise InputError(
        f"{folder / shape.filename}: its cache or logits are not what {GENAI_CONFIG} says",
        "graph and configuration do not belong together; export the artifact again",
    )


def _wrap(array: NDArray[Any], memory: str = "cpu", device: int = 0) -> Any:
    """An OrtValue: over the array's own memory on the CPU, a copy elsewhere."""
    import onnxruntime

    return onnxruntime.OrtValue.ortvalue_from_numpy(array, memory, device)
