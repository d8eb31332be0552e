"""Work spread over threads so that the result does not depend on their number.

The pieces are fixed beforehand, each is computed by one thread with single-threaded libraries, and
the results are taken in order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Concatenate, ParamSpec, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")
Shared = ParamSpec("Shared")


class Workers:
    """A pool of `threads` threads."""

    def __init__(self, threads: int) -> None:
        self._threads = max(1, threads)
        self._pool = ThreadPoolExecutor(self._threads)

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *failure: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def in_order(
        self,
        work: Callable[Concatenate[Item, Shared], Result],
        items: Iterable[Item],
        *shared: Shared.args,
        **named: Shared.kwargs,
    ) -> Iterator[Result]:
        """`work(item, *shared)` in the order of the items; at most one result waits beyond the busy
        threads."""
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(work, item, *shared, **named))
                if len(waiting) > self._threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@contextmanager
def single_threaded_libraries() -> Iterator[None]:
    """One thread in NumPy's and torch's kernels: their sums depend on how they share the work."""
    import torch
    from threadpoolctl import threadpool_limits

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1):
            yield
    finally:
        torch.set_num_threads(before)
