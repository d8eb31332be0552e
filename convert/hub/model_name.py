"""What a user may write for a model that is not on this machine."""

from __future__ import annotations

import re
from dataclasses import dataclass

from dsconv.errors import InputError, UsageError

from .name_checks import COMMIT, check_revision

HUGGING_FACE, MODELSCOPE = "hub", "modelscope"
SCHEMES = {"hf": HUGGING_FACE, "modelscope": MODELSCOPE}
REVISION = r"(?:refs/(?:pr|convert)/[\w.-]+|[\w.-]+)"
LABEL = r"(?::(?P<label>[\w.-]+))?"
HUB_NAME = re.compile(rf"(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:@(?P<revision>[\w./-]+))?{LABEL}")
WITH_SCHEME = re.compile(
    r"(?P<scheme>hf|modelscope)://(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)"
    rf"(?:@(?P<revision>{REVISION}(?=/.*\.gguf$)|[\w./-]+))?(?:/(?P<file>.+\.gguf)|{LABEL})"
)
PAGE = re.compile(  # as people copy it from a browser
    r"(?:https?://)?(?P<host>(?:www\.)?(?:huggingface\.co|hf\.co|hf-mirror\.com|modelscope\.(?:cn|ai)))"
    r"/(?:models/)?(?P<name>[A-Za-z0-9][\w.-]*/[\w.-]+)(?:/(?:tree|blob|resolve)/(?P<revision>[\w.-]+))?"
)


@dataclass(frozen=True)
class ModelReference:
    """A model of an endpoint. `file`: one GGUF file of it; revision None: the main branch.

    label: the one whose name has this word in it, `Q4_K_M` for `model-Q4_K_M.gguf`.
    """

    name: str
    revision: str | None = None
    file: str | None = None
    source: str = HUGGING_FACE
    label: str | None = None

    @property
    def is_gguf(self) -> bool:
        return self.file is not None or self.label is not None

    @property
    def commit(self) -> str | None:
        """The revision, where it is a full commit, which never changes."""
        return self.revision if self.revision and COMMIT.fullmatch(self.revision) else None

    def __str__(self) -> str:
        return self.name + (f"@{self.revision}" if self.revision else "")


def looks_like_hub_name(model: str) -> bool:
    return HUB_NAME.fullmatch(model) is not None or WITH_SCHEME.fullmatch(model) is not None


def likely_name(model: str) -> str:
    """The cure for what is no path and no name: a page's address has the name in it."""
    found = PAGE.match(model)
    if found is None:
        return "use a folder, a .gguf file, or a hub name (org/model)"
    scheme = "modelscope://" if "modelscope" in found["host"] else ""
    revision = f"@{found['revision']}" if found["revision"] else ""
    return f"use the name on that page: {scheme}{found['name']}{revision}"


def parse_reference(model: str, source: str | None = None) -> ModelReference:
    """`org/name[@revision][:label]`, `hf://org/name[@revision][/file.gguf]`, or `modelscope://…`.

    Args:
        source: where to look for what has no scheme of its own.

    Raises:
        InputError: something else.
        UsageError: an unknown source, or one that contradicts the scheme.
    """
    if source not in (None, *SCHEMES.values()):
        raise UsageError(f"source {source!r} is not known", f"known: {', '.join(SCHEMES.values())}")
    match = WITH_SCHEME.fullmatch(model)
    if match is not None:
        named = SCHEMES[match["scheme"]]
        if source not in (None, named):
            raise UsageError(f"{model}: not of source {source!r}", "leave out --source")
        reference = ModelReference(
            match["name"], match["revision"], match["file"], named, match["label"]
        )
    elif (match := HUB_NAME.fullmatch(model)) is not None:
        where = source or HUGGING_FACE
        reference = ModelReference(match["name"], match["revision"], None, where, match["label"])
    else:
        raise InputError(
            f"{model}: not a hub name", "use org/model, org/model@revision, or hf://org/model"
        )
    if ".." in reference.name or "--" in reference.name:
        raise InputError(
            f"{model}: neither a file or folder nor a hub name: '--' and '..' are forbidden there",
            "use a folder, a .gguf file, or a hub name (org/model)",
        )
    if reference.revision is not None:
        check_revision(reference.revision, model)
    return reference
