"""Open a graph on an execution provider, and find out which of its nodes run there."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dsconv.convert.formats.onnx.external_data import check_external_data, read_model
from dsconv.errors import InputError, ProviderError

from .onnx_provider import create_session, import_onnxruntime
from .placement import SHAPE_ARITHMETIC, Placement, from_partition, from_profile, with_times
from .providers import ProviderChoice, choose_provider


@dataclass(frozen=True)
class OpenGraph:
    """A session, and the folder of its profile while its first steps are timed."""

    path: Path
    session: Any
    choice: ProviderChoice
    allow_fallback: bool
    scratch: Path | None

    def place(self, steps: Callable[[], None]) -> Placement | None:
        """Where the nodes are; None on the CPU. `steps` runs the graph, if it is to be timed.

        Raises:
            ProviderError: a provider that shares the graph with the CPU left it more than shape
                arithmetic, and that was not allowed.
        """
        if self.choice.is_cpu:
            return None
        tell = getattr(self.session, "get_provider_graph_assignment_info", list)
        placement = from_partition(tell())  # a recent addition, and some providers tell nothing
        if self.scratch is not None:
            timed = self._profile(steps, self.scratch)
            placement = with_times(placement, timed) if placement else timed
        if placement and not self.allow_fallback:
            self._refuse_work_elsewhere(placement)
        return placement

    def _profile(self, steps: Callable[[], None], scratch: Path) -> Placement:
        try:
            steps()
            return from_profile(json.loads(Path(self.session.end_profiling()).read_text()))
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _refuse_work_elsewhere(self, placement: Placement) -> None:
        elsewhere = placement.elsewhere(self.choice.provider.name)
        work = {op: nodes for op, nodes in elsewhere.items() if op not in SHAPE_ARITHMETIC}
        if work:
            listed = ", ".join(f"{op} ({nodes})" for op, nodes in sorted(work.items()))
            raise ProviderError(
                f"{self.path}: provider {self.choice.label!r} leaves operators to the CPU: "
                f"{listed}",
                "export for that provider (--target), or add --allow-fallback",
            )


@contextmanager
def graph_failures(path: Path) -> Iterator[None]:
    """Around a run of the graph at `path`: what ONNX Runtime says of it becomes InputError."""
    try:
        yield
    except Exception as error:  # ONNX Runtime raises a class of its own per status code
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: ONNX Runtime cannot run it: {reason}", "export the artifact again"
        ) from error


def open_graph(
    path: Path,
    accuracy_level: int,
    provider: str = "cpu",
    threads: int = 0,
    allow_fallback: bool = False,
) -> OpenGraph:
    """Open the graph at `path`; `provider` is `NAME[:DEVICE]`.

    Raises:
        InputError: the file is missing or no graph.
        ProviderError: the provider is not there, or does not run the graph.
    """
    choice = choose_provider(provider)
    runtime = import_onnxruntime()
    if not os.path.lexists(path):
        raise InputError(f"{path}: missing", "export the artifact again")
    check_external_data(path, read_model(path))
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", str(accuracy_level))
    scratch = None
    if not choice.is_cpu and (allow_fallback or choice.provider.shares_with_cpu):
        scratch = Path(tempfile.mkdtemp(prefix="dsconv-profile-"))
        options.enable_profiling = True
        options.profile_file_prefix = str(scratch / "profile")
    try:
        session = create_session(path, choice, options, allow_fallback)
    except Exception as error:  # ONNX Runtime raises a class of its own per status code
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
        if isinstance(error, ProviderError):
            raise
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path}: ONNX Runtime cannot load it: {reason}", "export the artifact again"
        ) from error
    return OpenGraph(path, session, choice, allow_fallback, scratch)
