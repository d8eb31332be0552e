"""Which family a config.json means: `architectures`, `model_type`, and what tools write there.

transformers goes by `model_type`, vLLM by `architectures`; where they contradict each other the two
would run different networks.
"""

from __future__ import annotations

from collections.abc import Sequence

from dsconv.convert.files.json_file import ConfigReader
from dsconv.errors import UnsupportedError

from .base import Decoder

CAUSAL = "ForCausalLM"
# Other classes over the same layers, and what they give in place of the next token.
OTHER_HEADS = {
    "ForSequenceClassification": "classes of a text",
    "ForTokenClassification": "classes of tokens",
    "ForQuestionAnswering": "places of an answer",
    "ForRewardModel": "a reward",
    "RewardModel": "a reward",
    "ForConditionalGeneration": "text from more than text",
}


def choose_family(reader: ConfigReader, families: Sequence[type[Decoder]]) -> type[Decoder]:
    """
    Raises:
        InputError: `architectures` is malformed, or neither key is there.
        UnsupportedError: no such family, another head than for text, or the keys disagree.
    """
    by_type = {family.model_type: family for family in families}
    names = reader.data.get("architectures")
    if names is None or (
        names == [] and reader.has("model_type")
    ):  # some converted checkpoints carry model_type alone
        model_type = reader.string("model_type")
        if model_type not in by_type:
            raise _unsupported(reader, "model_type", model_type, families)
        return by_type[model_type]
    if not isinstance(names, list) or not names:
        raise reader.fail("architectures", f"{names!r} is not a list of names")
    family = _named(names[0], families)
    if family is None:
        raise _unsupported(reader, "architecture", names[0], families)
    other = by_type.get(str(reader.data.get("model_type")), family)
    if other is not family:
        raise UnsupportedError(
            f"{reader.where}: architectures says {names[0]}, model_type says "
            f"{other.model_type!r}: readers would run different networks",
            "correct the wrong one of the two: compare with the original model",
        )
    return family


def _named(name: object, families: Sequence[type[Decoder]]) -> type[Decoder] | None:
    """Also by the class without a head (`LlamaModel`), and as early conversions spelt it: LLaMA."""
    if not isinstance(name, str):
        return None
    for family in families:
        stem = family.architecture.removesuffix(CAUSAL)
        if name.lower() == family.architecture.lower() or name == f"{stem}Model":
            return family
    return None


def _unsupported(
    reader: ConfigReader, kind: str, name: object, families: Sequence[type[Decoder]]
) -> UnsupportedError:
    said = f"{reader.where}: {kind} {name!r}"
    text = str(name)
    if text.startswith("Peft"):
        return UnsupportedError(
            f"{said} is a model with an adapter of peft",
            "merge it first (merge_and_unload), and save the result",
        )
    gives = next((what for ending, what in OTHER_HEADS.items() if text.endswith(ending)), None)
    supported = ", ".join(family.architecture for family in families)
    if gives is not None:
        return UnsupportedError(
            f"{said} is not supported: it gives {gives}", f"supported: {supported}"
        )
    return UnsupportedError(f"{said} is not supported", f"supported: {supported}")
