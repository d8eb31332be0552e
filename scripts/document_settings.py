"""Write docs/settings.md from the tables of keys that the code reads.

python scripts/document_settings.py         write it
python scripts/document_settings.py check   exit code 1 when the file says something else
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

from dsconv.convert.families.known_keys import OF_OTHERS, OF_TRANSFORMERS
from dsconv.convert.families.rope_config import ALWAYS, KINDS, NEUTRAL, WITHOUT_EFFECT
from dsconv.convert.files.known_key import KnownKey, Use
from dsconv.runtime.generate.generation_keys import GENERATION_KEYS
from dsconv.runtime.text.tokenizer_keys import TOKENIZER_KEYS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
TITLE = """# Settings of a model

Made by `scripts/document_settings.py` from the tables that the code reads; tests compare the page
with the tables, and the tables with the keys that transformers knows.

A setting that is known to change results is used, refused, or named; none is dropped in silence.

- **used**: it means here what it means in transformers.
- **refused**: any other value than those in brackets is an error (exit code 4) that names file,
  key and value. A missing or null one is not.
- **named**: any other value than those in brackets is said on stderr as not applied.
- **no effect**: on results, for the reason given.

A key that is in none of these tables is ignored: people write all kinds of things into these
files.
"""
ROTARY = """## Rotary settings

They may stand at the top level of config.json (`rope_theta`), in `rope_scaling`, in
`rope_parameters`, or in one of the two once per type of layer; then those of `full_attention` are
used, the type of every layer (transformers drops them for Llama and fails for Qwen). In both
objects at once, or at the top level and inside, they must agree: readers take one or the other,
so a contradiction is refused (exit code 3). `type` is the older word for `rope_type`. What is
written (quantized folders, ONNX, compressed-tensors, AscendV1) has `rope_theta` at the top level
and the rest in `rope_scaling`, where old and new readers look.

| rope_type | keys used |
|---|---|
"""
AFTER_ROTARY = """
`dynamic` scales beyond `max_position_embeddings` only, where no session goes: within, it is
`default`. A `factor` of null in `yarn` is the ratio of the two lengths. Other types (`longrope`,
`mrope`, …) are refused, and so is any other key, unless its value changes nothing ({neutral});
{ignored} are ignored where a type does not use them. `attn_factor` (DeepSeek-R1-0528-Qwen3-8B has
it) is not applied, as in transformers, and named, with the `attention_factor` that would make it
what vLLM computes.

"""


def page() -> str:
    """The whole page."""
    rotary = "\n".join(
        f"| `{name}` | {', '.join(f'`{key}`' for key in sorted(kind.keys | ALWAYS))} |"
        for name, kind in KINDS.items()
    )
    neutral = ", ".join(f"`{key}` {values[0]!r}" for key, values in NEUTRAL.items())
    ignored = " and ".join(f"`{key}`" for key in sorted(WITHOUT_EFFECT))
    return "\n".join(
        [
            TITLE,
            *section("config.json", OF_TRANSFORMERS),
            *section("Keys of other families in config.json", OF_OTHERS),
            ROTARY + rotary,
            AFTER_ROTARY.format(neutral=neutral, ignored=ignored).rstrip("\n") + "\n",
            *section("generation_config.json", GENERATION_KEYS),
            "Without this file its keys are looked for in config.json. How they are applied: "
            "[run.md](run.md).\n",
            *section("tokenizer_config.json", TOKENIZER_KEYS),
            "The first of `tokenizer_config.json` and `special_tokens_map.json` that has a special "
            "token decides,\nalso with null. Of a token in `added_tokens_decoder` its text, id, "
            "`special`, `normalized`, `lstrip`, `rstrip`\nand `single_word` count.",
            "",
        ]
    )


def section(title: str, keys: Mapping[str, KnownKey]) -> Iterator[str]:
    yield f"## {title}\n\n| key | | |\n|---|---|---|"
    for key, known in keys.items():
        yield f"| `{key}` | {words(known)} | {known.why} |"
    yield ""


def words(known: KnownKey) -> str:
    if known.use in (Use.USED, Use.NO_EFFECT) or not known.neutral:
        return known.use.value
    return f"{known.use.value} ({', '.join(f'`{value!r}`' for value in known.neutral)})"


if __name__ == "__main__":
    if sys.argv[1:] != ["check"]:
        PAGE.write_text(page(), encoding="utf-8")
    elif PAGE.read_text(encoding="utf-8") != page():
        sys.exit(f"{PAGE} is not what the tables say; run python scripts/document_settings.py")
