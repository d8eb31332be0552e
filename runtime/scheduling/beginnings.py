"""What lies in the cache, found by how it begins: the next prompt may begin like it.

Texts lie in a tree, SPAN tokens an edge. To find one, or to keep one, takes as many steps as the
text has spans, however many others there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

SPAN = 16  # tokens; a shorter beginning is not worth a copy


@dataclass(eq=False)
class Held:
    """A sequence of the batch. tokens: its text, of which the first `done` are in the cache and the
    rest will be; kept: nobody works on it."""

    sequence: int
    tokens: list[int]
    done: int = 0
    kept: bool = False
    path: list[Node] = field(default_factory=list)
    gone: bool = False


class Node:
    """A beginning, and who has it."""

    __slots__ = ("children", "held", "key", "parent")

    def __init__(self, parent: Node | None = None, key: tuple[int, ...] = ()) -> None:
        self.parent, self.key = parent, key
        self.children: dict[tuple[int, ...], Node] = {}
        self.held: dict[Held, None] = {}  # in the order in which they came


@dataclass(frozen=True)
class Found:
    """ready: the one with the most of a text in the cache, `length` tokens; promised: the one that
    will have the most, `later` tokens."""

    ready: Held | None = None
    length: int = 0
    promised: Held | None = None
    later: int = 0


class Beginnings:
    """All texts that are in the cache or on their way there."""

    def __init__(self) -> None:
        self._root = Node()

    def update(self, held: Held) -> None:
        """From now on it is found, by the text that it has now."""
        while len(held.path) > len(held.tokens) // SPAN:
            self._leave(held.path.pop(), held)
        node = held.path[-1] if held.path else self._root
        for start in range(len(held.path) * SPAN, len(held.tokens) - SPAN + 1, SPAN):
            key = tuple(held.tokens[start : start + SPAN])
            child = node.children.get(key)
            if child is None:
                child = node.children[key] = Node(node, key)
            child.held[held] = None
            held.path.append(child)
            node = child

    def remove(self, held: Held) -> None:
        while held.path:
            self._leave(held.path.pop(), held)
        held.gone = True

    def find(self, tokens: Sequence[int], most: int) -> Found:
        """Who begins most like `tokens`, of which `most` count at most."""
        node, depth = self._root, 0
        while (depth + 1) * SPAN <= most:
            child = node.children.get(tuple(tokens[depth * SPAN : (depth + 1) * SPAN]))
            if child is None:
                break
            node, depth = child, depth + 1
        ready: Held | None = None
        promised: Held | None = None
        length = later = 0
        seen: set[Held] = set()
        # Upwards: who leaves the way earlier may have computed more of it.
        while depth and length < (depth + 1) * SPAN - 1:
            for held in node.held:
                if held in seen:
                    continue
                seen.add(held)
                same = common_length(held.tokens, tokens, most, depth * SPAN)
                if min(same, held.done) > length:
                    ready, length = held, min(same, held.done)
                if same > later:
                    promised, later = held, same
            assert node.parent is not None
            node, depth = node.parent, depth - 1
        if length < SPAN:
            ready, length = None, 0
        return Found(ready, length, promised, later)

    def related(self, held: Held) -> tuple[Held | None, list[Held]]:
        """-> (a kept one that begins with all of `held`, kept ones that are beginnings of it)."""
        if not held.path:
            return None, []
        others = [other for other in held.path[0].held if other.kept and other is not held]
        longer: Held | None = None
        shorter: list[Held] = []
        for other in others:
            depth = min(len(held.path), len(other.path))
            if held.path[depth - 1] is not other.path[depth - 1]:
                continue
            most = min(len(held.tokens), len(other.tokens))
            if common_length(held.tokens, other.tokens, most, depth * SPAN) < most:
                continue
            if most == len(held.tokens):
                longer = other
            else:
                shorter.append(other)
        return longer, shorter

    def _leave(self, node: Node, held: Held) -> None:
        del node.held[held]
        if not node.held and node.parent is not None:
            del node.parent.children[node.key]


def common_length(a: Sequence[int], b: Sequence[int], most: int, known: int = 0) -> int:
    """Tokens at the beginning that are the same, `most` at most; the first `known` are."""
    end = min(len(a), len(b), most)
    return next((i for i in range(known, end) if a[i] != b[i]), max(end, 0))
