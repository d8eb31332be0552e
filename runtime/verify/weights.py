"""The check of an artifact's weights against the original's; what it finds is kept.

It is decided by the bytes of both alone, so that a second verify need not look again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from dsconv import __version__
from dsconv.atomic import output_file
from dsconv.errors import DsconvError, OutputError, ProviderError, UnsupportedError
from dsconv.runtime.console import progress, say
from dsconv.runtime.sessions.torch_device import import_torch

from .comparison import Comparison
from .findings.integrity import BESIDE, can_be_vouched_for, integrity_findings
from .reference import CheckpointReference, Tokens
from .verdict import Circumstances, Finding, LayerError, VerdictPart

LAYER_TOKENS = 512  # of the text; what a layer does to them shows what its weights are worth


@dataclass(frozen=True)
class WeightsCheck:
    """Hashes, unless another check recomputes them, and layer by layer the weights.

    layers: None compares them where it is possible. cache: folder that keeps what was found; None
    keeps nothing.
    """

    layers: bool | None
    integrity: bool
    circumstances: Circumstances
    cache: Path | None

    def run(self, comparison: Comparison) -> VerdictPart:
        """
        Raises:
            UnsupportedError, ProviderError: layers were asked for and cannot be compared.
        """
        sample = _sample(comparison.windows)
        file = self.cache / "weights" / f"{self._key(sample)}.json" if self.cache else None
        known = _read(file) if file else None
        if known is not None:
            return known
        damaged: tuple[Finding, ...] = ()
        if not self.integrity and can_be_vouched_for(comparison.place):
            damaged = integrity_findings(comparison.place, BESIDE)
        try:
            part = self._compare(comparison, sample)
        except ProviderError as error:  # of this environment, not of the weights: not kept
            if self.layers:
                raise
            say(f"layers are not compared: {error.message}")
            return VerdictPart(damaged)
        found = VerdictPart((*damaged, *part.findings), part.layers)
        if file:
            _write(file, found)
        return found

    def _compare(self, comparison: Comparison, sample: Tokens) -> VerdictPart:
        """
        Raises:
            ProviderError: there is no torch to compare with.
        """
        if self.layers is False:
            return VerdictPart()
        if not isinstance(comparison.reference, CheckpointReference):
            if self.layers:
                raise UnsupportedError(
                    f"{comparison.reference.name}: layers cannot be compared with an exported "
                    "artifact",
                    "use the checkpoint that it was made from as --reference",
                )
            return VerdictPart()
        try:
            return _view(comparison.path, comparison.reference, sample)
        except DsconvError as error:
            if self.layers or isinstance(error, ProviderError):
                raise
            say(f"layers are not compared: {error.message}")
            return VerdictPart()

    def _key(self, sample: Tokens) -> str:
        """Of all that decides over what is seen: files, tokens, and how dsconv looks at them."""
        c = self.circumstances
        content = [
            __version__,
            self.layers,
            self.integrity,
            c.artifact,
            sorted(c.artifact_files.items()),
            c.reference_hash,
            [list(window) for window in sample],
        ]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _view(path: str, reference: CheckpointReference, sample: Tokens) -> VerdictPart:
    import_torch()
    from .findings.layers import view_layers

    checkpoint = reference.checkpoint
    with progress("layers", checkpoint.decoder.config.num_hidden_layers + 2, "layers") as advance:
        view = view_layers(path, checkpoint, sample, advance)
    return VerdictPart(view.findings, view.layers)


def _sample(windows: Tokens) -> list[Sequence[int]]:
    """The first LAYER_TOKENS of the text."""
    found: list[Sequence[int]] = []
    left = LAYER_TOKENS
    for window in windows:
        if left < 2:
            break
        found.append(window[:left])
        left -= len(found[-1])
    return found


def _read(path: Path) -> VerdictPart | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return VerdictPart(
            tuple(Finding(**entry) for entry in content["findings"]),
            tuple(LayerError(**entry) for entry in content["layers"]),
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path, found: VerdictPart) -> None:
    """Best effort: a folder that cannot be written only costs the next verify its time."""
    content: Mapping[str, Any] = {
        "layers": [{**asdict(layer), "matrices": dict(layer.matrices)} for layer in found.layers],
        "findings": [asdict(finding) for finding in found.findings],
    }
    try:
        with output_file(path, overwrite=True) as partial:
            partial.write_text(json.dumps(content), encoding="utf-8")
    except (OutputError, OSError) as error:
        say(f"what was seen of the layers is not kept: {error}")
