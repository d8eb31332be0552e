"""What is compared: an artifact and the model it was made from, on the same windows of tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dsconv.runtime.generate.draft import Draft
from dsconv.runtime.sessions.load import Loaded, load
from dsconv.runtime.text.tokenizer import TextTokenizer

from .reference import Reference, Tokens


@dataclass(frozen=True)
class Comparison:
    """path: of the artifact; dtype, threads: how the reference is run where it must run whole;
    draft: guesses for the artifact where it answers questions."""

    path: str
    artifact: Loaded
    reference: Reference
    windows: Tokens
    dtype: str = "float32"
    threads: int = 0
    draft: Draft | None = None

    @property
    def place(self) -> Path:
        return Path(self.path).expanduser()

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        return tokenizer_of(self.artifact, self.reference)

    @cached_property
    def running_reference(self) -> Loaded:
        """The reference as a whole in memory."""
        return load(self.reference.name, "cpu", self.threads, self.dtype)


def tokenizer_of(artifact: Loaded, reference: Reference) -> TextTokenizer:
    """The reference's, where it has one."""
    return TextTokenizer(reference.side_files or artifact.side_files, reference.config)
