"""Other runtimes that `bench --against` measures beside ours, each on its own quantization.

llama_cpp_peer  llama.cpp, by package llama-cpp-python
genai_peer      onnxruntime-genai
openvino_peer   OpenVINO GenAI
building        runs a peer's own tools, which make its model
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dsconv.errors import ProviderError, UsageError

if TYPE_CHECKING:
    from dsconv.runtime.generate.timed import Runner


@dataclass(frozen=True)
class Peer:
    """How a runtime is named, installed and found.

    `module` of this package has `build(checkpoint, bits, output)`, `open_runner(path, threads,
    kv)` and `weight_bytes_per_token(path)`.
    """

    name: str
    package: str  # of pip
    imported: str
    module: str

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def require(self) -> None:
        """
        Raises:
            ProviderError: the package is not installed.
        """
        if importlib.util.find_spec(self.imported) is None:
            raise ProviderError(f"{self.name} is not installed", f"pip install {self.package}")

    def build(self, checkpoint: str, bits: int, output: Path) -> None:
        """Write the peer's own quantization of a checkpoint, by its own tools, into a folder."""
        build: Callable[[str, int, Path], None] = self._load().build
        build(checkpoint, bits, output)

    def open_runner(self, path: str, threads: int, kv: str) -> Runner:
        """kv: type of the cache, fp16 or int8.

        Raises:
            UnsupportedError: the peer has no such cache.
        """
        opener: Callable[[str, int, str], Runner] = self._load().open_runner
        return opener(path, threads, kv)

    def weight_bytes_per_token(self, path: Path) -> int:
        """Bytes of the weights that one decode step reads, as they are stored."""
        count: Callable[[Path], int] = self._module().weight_bytes_per_token
        return count(path)

    def _load(self) -> Any:
        self.require()
        return self._module()

    def _module(self) -> Any:
        """The peer itself may lie in another environment."""
        return importlib.import_module(f".{self.module}", __name__)


PEERS = {
    peer.name: peer
    for peer in (
        Peer("llama.cpp", "llama-cpp-python", "llama_cpp", "llama_cpp_peer"),
        Peer("onnxruntime-genai", "onnxruntime-genai", "onnxruntime_genai", "genai_peer"),
        Peer("openvino", "openvino-genai", "openvino_genai", "openvino_peer"),
    )
}


def find_peer(name: str) -> Peer:
    """
    Raises:
        UsageError: no such peer.
        ProviderError: its package is not installed.
    """
    if name not in PEERS:
        raise UsageError(f"{name!r} is no runtime to compare with", f"choose {', '.join(PEERS)}")
    PEERS[name].require()
    return PEERS[name]
