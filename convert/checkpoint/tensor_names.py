"""Names of tensors as people's tools leave them -> the names of the architecture.

A model saved from inside a wrapper (torch.compile, DistributedDataParallel, peft, the text part of
a multimodal model), or without its head's class, has the right tensors under other names. Where
that is one prefix before all of them, they are read without it. What peft keeps beside a weight is
no prefix but another model: it is refused.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from dsconv.errors import InputError, UnsupportedError

from .weight_files import MERGE_FIRST

# Parts of a name that a wrapper puts anywhere in it, and who does.
WRAPPERS: Mapping[str, str] = {
    "_orig_mod": "torch.compile",
    "_fsdp_wrapped_module": "FSDP",
    "_checkpoint_wrapped_module": "activation checkpointing",
    "_forward_module": "Lightning or DeepSpeed",
}
# Before all names; the longest that fits says who.
PREFIXES: Mapping[str, str] = {
    "base_model.model.": "peft",
    "module.": "DataParallel or DeepSpeed",
    "model.language_model.": "a multimodal model, of which this is the text part",
    "language_model.": "a multimodal model, of which this is the text part",
    "text_model.": "a multimodal model, of which this is the text part",
    "llm.": "a multimodal model, of which this is the text part",
    "transformer.": "a wrapper",
}
ADAPTER_PART = re.compile(
    r"(^|\.)(lora_[A-Za-z_]+|base_layer|modules_to_save|original_module|ia3_l|hada_w\d_[ab]"
    r"|prompt_encoder|prompt_embeddings|vera_lambda_[bd]|oft_R|boft_R|trainable_tokens_delta)(\.|$)"
)


@dataclass(frozen=True)
class ExpectedNames:
    """What the architecture calls its parts.

    base: what stands before all names but the head's, such as `model.`; anchor: a tensor below it
    that every checkpoint has as it is (a norm); head: the path of the head.
    modules: the path of every module that has tensors.
    """

    base: str
    anchor: str
    head: str
    modules: frozenset[str]


@dataclass(frozen=True)
class Renaming:
    """stored name -> name of the architecture, for all; note: what was done, for people."""

    names: Mapping[str, str]
    note: str | None = None


def known_names(stored: Collection[str], expected: ExpectedNames, where: str) -> Renaming:
    """Find out what stands before the names.

    Raises:
        UnsupportedError: an adapter that is not merged.
        InputError: two tensors would have one name; or more than one prefix is possible.
    """
    _refuse_adapters(stored, where)
    bare = {name: _unwrapped(name) for name in stored}
    wrappers = sorted({part for name in stored for part in name.split(".") if part in WRAPPERS})
    prefix, head_prefix = _prefixes(set(bare.values()), expected, where)
    names = {name: _renamed(bare[name], prefix, head_prefix, expected) for name in stored}
    _refuse_collisions(names, where)
    return Renaming(names, _note(wrappers, prefix, head_prefix, expected, where))


def _refuse_adapters(stored: Iterable[str], where: str) -> None:
    found = sorted(name for name in stored if ADAPTER_PART.search(name))
    if found:
        raise UnsupportedError(
            f"{where}: tensor {found[0]!r} and {len(found) - 1} more belong to an adapter of peft "
            "that is not merged",
            MERGE_FIRST,
        )


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def _prefixes(stored: Collection[str], expected: ExpectedNames, where: str) -> tuple[str, str]:
    """-> what stands in place of the base, what stands before the head."""
    if expected.anchor in stored:
        prefix = expected.base
    else:
        tail = expected.anchor.removeprefix(expected.base)
        ends = sorted(
            name.removesuffix(tail) for name in stored if name == tail or name.endswith(f".{tail}")
        )
        if len(ends) > 1:
            raise InputError(
                f"{where}: {expected.anchor!r} is missing, and {ends[0] + tail!r} and "
                f"{ends[1] + tail!r} could both be it",
                "keep only the tensors of the text model, under its own names",
            )
        prefix = ends[0] if ends else expected.base
    outer = _outer(prefix, expected.base)
    head = next(
        (
            place
            for place in ("", outer, prefix)
            if any(name.startswith(f"{place}{expected.head}.") for name in stored)
        ),
        "",
    )
    return prefix, head


def _renamed(name: str, prefix: str, head_prefix: str, expected: ExpectedNames) -> str:
    if name.startswith(f"{head_prefix}{expected.head}."):
        return name.removeprefix(head_prefix)
    if prefix == expected.base or not name.startswith(prefix):
        return name
    new = expected.base + name.removeprefix(prefix)
    return new if _is_known(new, expected) else name


def _is_known(name: str, expected: ExpectedNames) -> bool:
    """Of a module of the architecture; bitsandbytes has `module.weight.absmax` and the like."""
    module = name.rpartition(".")[0]
    return module in expected.modules or module.rpartition(".")[0] in expected.modules


def _outer(prefix: str, base: str) -> str:
    """What stands before the base, or in its place."""
    if prefix == base:
        return ""
    return prefix.removesuffix(base) if prefix.endswith(f".{base}") else prefix


def _refuse_collisions(names: Mapping[str, str], where: str) -> None:
    origin: dict[str, str] = {}
    for stored, name in names.items():
        other = origin.setdefault(name, stored)
        if other != stored:
            raise InputError(
                f"{where}: tensors {other!r} and {stored!r} would both be {name!r}",
                "keep one of them: the file holds the model twice",
            )


def _note(
    wrappers: list[str], prefix: str, head_prefix: str, expected: ExpectedNames, where: str
) -> str | None:
    parts = [f"{part!r} in the names of its tensors ({WRAPPERS[part]})" for part in wrappers]
    if prefix != expected.base:
        parts.append(_prefix_words(prefix, expected.base))
    elif head_prefix:
        parts.append(f"{head_prefix!r} before {expected.head!r}")
    return f"{where}: read without {', and '.join(parts)}" if parts else None


def _prefix_words(prefix: str, base: str) -> str:
    outer = _outer(prefix, base)
    if not prefix:
        return f"the prefix {base!r} that is missing there (the model was saved without its head)"
    known = max((name for name in PREFIXES if prefix.startswith(name)), key=len, default=None)
    maker = f"of {PREFIXES[known] if known else 'some wrapper'}"
    return f"the prefix {outer!r} before the names of its tensors ({maker})"
