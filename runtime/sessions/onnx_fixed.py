"""Run an artifact with fixed shapes: one graph per sequence length, a padded cache, its mask.

The graphs return the keys and values of the tokens they were given; this session writes them into
the cache behind those it holds. Positions beyond them, and the padding of a last chunk, are masked.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.convert.files import limits
from dsconv.convert.files.json_file import ConfigReader, read_json_object
from dsconv.convert.files.local_files import safe_join
from dsconv.convert.formats.onnx.names import FIXED_SHAPES
from dsconv.errors import InputError

from .onnx import ELEMENTS, accuracy_level_of
from .onnx_graph import OpenGraph, graph_failures, open_graph
from .session import refuse_unknown_tokens

# Added to the scores of what a query must not see. It fits float16, in which NPUs compute.
MASKED = np.float32(-6.0e4)


@dataclass(frozen=True)
class FixedGraph:
    """A graph for runs of `sequence_length` tokens."""

    graph: OpenGraph
    sequence_length: int

    @property
    def session(self) -> Any:
        return self.graph.session


class FixedOnnxSession:
    """One sequence on graphs of fixed shapes; the Session protocol of `session.py`.

    placement: of the shortest graph, which decodes; see OnnxSession.
    """

    def __init__(
        self, folder: Path, provider: str = "cpu", threads: int = 0, allow_fallback: bool = False
    ) -> None:
        reader = ConfigReader(read_json_object(folder / FIXED_SHAPES), str(folder / FIXED_SHAPES))
        self._capacity = reader.integer("context_length", high=limits.POSITIONS)
        self._graphs = sorted(
            (
                _open(folder, graph, self._capacity, (provider, threads, allow_fallback))
                for graph in reader.children("graphs")
            ),
            key=lambda graph: graph.sequence_length,
        )
        if not self._graphs:
            raise reader.fail("graphs", "empty")
        inputs = self._graphs[0].session.get_inputs()
        past = [node for node in inputs if node.name.startswith("past_key_values.")]
        outputs = {node.name: node.shape for node in self._graphs[0].session.get_outputs()}
        if not _is_decoder(past, outputs, self._capacity):
            raise InputError(
                f"{self._graphs[0].graph.path}: its cache or logits are not what {FIXED_SHAPES} "
                "says",
                "graph and configuration do not belong together; export the artifact again",
            )
        self._cache: dict[str, NDArray[np.floating[Any]]] = {
            node.name: np.zeros(node.shape, ELEMENTS[node.type]) for node in past
        }
        self._vocabulary = int(outputs["logits"][-1])
        self._position = 0
        placements = [graph.graph.place(self._probe(graph)) for graph in self._graphs]
        self.placement = placements[0]

    def _probe(self, graph: FixedGraph) -> Callable[[], None]:
        """One run of the graph, to time."""

        def run() -> None:
            self._run(graph, [0])
            self.reset()

        return run

    @property
    def vocabulary(self) -> int:
        return self._vocabulary

    @property
    def context_length(self) -> int:
        return self._capacity

    @property
    def position(self) -> int:
        return self._position

    def reset(self) -> None:
        """Forget the sequence."""
        self._position = 0

    def truncate(self, length: int) -> None:
        """Keep the first `length` tokens; what lies behind them is masked and written over."""
        self._position = min(length, self._position)

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append `tokens` -> logits [vocabulary] after the last."""
        last: NDArray[np.float32] = np.empty(0, np.float32)
        for chunk, graph in self._chunks(tokens):
            last = self._run(graph, chunk)[-1]
        return last

    def decode(self, token: int) -> NDArray[np.float32]:
        """Append one token -> logits [vocabulary]."""
        return self.prefill([token])

    def score(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """From an empty cache -> logits [tokens, vocabulary]."""
        self.reset()
        return self.extend(tokens)

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append `tokens` -> logits [tokens, vocabulary]."""
        return np.concatenate([self._run(graph, chunk) for chunk, graph in self._chunks(tokens)])

    def _chunks(self, tokens: Sequence[int]) -> list[tuple[Sequence[int], FixedGraph]]:
        """Cut `tokens` for the longest graph; what is left goes to the shortest that holds it."""
        longest = self._graphs[-1].sequence_length
        chunks = [tokens[i : i + longest] for i in range(0, len(tokens), longest)]
        return [
            (chunk, next(g for g in self._graphs if g.sequence_length >= len(chunk)))
            for chunk in chunks
        ]

    def _run(self, graph: FixedGraph, tokens: Sequence[int]) -> NDArray[np.float32]:
        """Append at most a graph's length of tokens -> logits [tokens, vocabulary]."""
        refuse_unknown_tokens(tokens, self.vocabulary)
        count, rows, start = len(tokens), graph.sequence_length, self._position
        if start + count > self._capacity:
            raise InputError(
                f"{start + count} tokens do not fit the cache of {self._capacity} positions",
                "export again with a larger --context-length",
            )
        ids, positions = np.zeros((2, 1, rows), np.int32)
        ids[0, :count] = tokens
        positions[0, :count] = np.arange(start, start + count)
        feeds = {"input_ids": ids, "position_ids": positions} | self._cache
        feeds["attention_mask"] = score_mask(rows, self._capacity, start)
        names = [node.name for node in graph.session.get_outputs()]
        with graph_failures(graph.graph.path):
            results = dict(zip(names, graph.session.run(None, feeds), strict=True))
            for name, cache in self._cache.items():
                new = results[name.replace("past_key_values", "present")]
                cache[:, :, start : start + count] = new[:, :, :count]
            logits: NDArray[np.float32] = results["logits"][0, :count]
        self._position += count
        return logits


def score_mask(rows: int, capacity: int, held: int) -> NDArray[np.float32]:
    """-> [1, 1, rows, capacity + rows]: 0 for positions held and for tokens up to the query's own.

    Padding behind the tokens of a run is later than every one of them, hence masked by the same
    rule.
    """
    mask = np.full((1, 1, rows, capacity + rows), MASKED, np.float32)
    mask[..., :held] = 0
    mask[0, 0, :, capacity:][np.tril_indices(rows)] = 0
    return mask


def _is_decoder(past: list[Any], outputs: dict[str, list[Any]], capacity: int) -> bool:
    """Keys and values [1, heads, capacity, size] with new ones for each, and logits."""
    for node in past:
        new = outputs.get(node.name.replace("past_key_values", "present"), [])
        if node.type not in ELEMENTS or len(node.shape) != 4 or len(new) != 4:
            return False
        if not all(isinstance(size, int) and size > 0 for size in (*node.shape, *new)):
            return False
        if node.shape[2] != capacity or node.shape[0] != 1 or max(node.shape) > limits.POSITIONS:
            return False
        if [*node.shape[:2], node.shape[3]] != [*new[:2], new[3]]:
            return False
    width = outputs.get("logits", [])[-1:]
    return bool(past) and isinstance(width[0] if width else None, int)


def _open(
    folder: Path, graph: ConfigReader, capacity: int, how: tuple[str, int, bool]
) -> FixedGraph:
    """Open a graph and compare it with what the file says of it."""
    name, rows = graph.string("filename"), graph.integer("sequence_length")
    path = safe_join(folder, name, f"{graph.where}: filename")
    opened = open_graph(path, accuracy_level_of(folder), *how)
    if (size := 4 * rows * (capacity + rows)) > limits.MASK_BYTES:
        raise graph.fail(
            "sequence_length", f"{rows}: a mask of {size} bytes, limit {limits.MASK_BYTES}"
        )
    shapes = {node.name: node.shape for node in opened.session.get_inputs()}
    if shapes.get("input_ids") != [1, rows] or shapes.get("attention_mask") != [
        1,
        1,
        rows,
        capacity + rows,
    ]:
        raise InputError(
            f"{folder / name}: its inputs are not what {FIXED_SHAPES} says",
            "graph and configuration do not belong together; export the artifact again",
        )
    return FixedGraph(opened, rows)
