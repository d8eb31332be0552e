"""README.md of a built model: measured quality, size, how to run it, where it comes from.

Every figure is read from the verdict or the artifact; what was not measured has no line.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dsconv.runtime.console import size_text

RUN = {
    "onnx": "The folder `{artifact}` is also what onnxruntime-genai loads.",
    "native": "One file, tokenizer and chat template included, for dsconv's engine on CPUs.",
    "gguf": "```\nllama-cli -m {artifact}\n```",
    "compressed-tensors": "```\nvllm serve ./{artifact}\n```\n\ntransformers loads the folder too, "
    "with the package compressed-tensors.",
    "ascend": "```\nvllm serve ./{artifact} --quantization ascend\n```\n\nwith vllm-ascend, on a "
    "machine with Ascend's CANN.",
}

# What loads the artifact, in the words of model hubs.
LIBRARY = {
    "onnx": "onnx",
    "native": "dsconv",
    "gguf": "gguf",
    "compressed-tensors": "transformers",
    "ascend": "vllm",
}
# The first line of a licence's text, and what hubs call it.
LICENCES = {
    "mit license": "mit",
    "the mit license": "mit",
    "the mit license (mit)": "mit",
    "apache license": "apache-2.0",
    "apache license version 2.0": "apache-2.0",
    "apache license, version 2.0": "apache-2.0",
    "bsd 3-clause license": "bsd-3-clause",
}
HUB_LICENCE = re.compile(r"[a-z0-9][a-z0-9.+-]*")
NOT_IN_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


def yaml_string(text: str) -> str:
    """JSON's strings are YAML's; but YAML takes some characters for line breaks, some not at all,
    and knows no pairs of surrogates, which JSON escapes with.
    """
    quoted = json.dumps(text, ensure_ascii=False)
    return NOT_IN_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", quoted)


@dataclass(frozen=True)
class Card:
    """`licence` as the source has it, None where it does not tell; with `other`, its name and its
    link may follow.
    """

    name: str
    description: str
    source: str
    hub_name: str | None
    commit: str | None
    licence: str | None
    artifact: str
    format: str
    parameters: int
    bits_per_weight: float
    size_bytes: int
    quantization: Mapping[str, Any] | None
    verdict: Mapping[str, Any]
    version: str

    def text(self) -> str:
        return "\n".join([*self._front_matter(), *self._body()]) + "\n"

    def _front_matter(self) -> Iterator[str]:
        """What model hubs read."""
        yield "---"
        if self.hub_name is not None:
            yield f"base_model: {yaml_string(self.hub_name)}"
            if self.quantization is not None:
                yield "base_model_relation: quantized"
        yield f"library_name: {LIBRARY[self.format]}"
        yield from self._licence()
        yield "pipeline_tag: text-generation"
        tags = ", ".join(map(yaml_string, ("dsconv", self.format)))
        yield f"tags: [{tags}]"
        yield "---"

    def _licence(self) -> Iterator[str]:
        """Hubs refuse a card whose licence they do not know: those are `other`, with their name."""
        if self.licence is None:
            return
        first, *details = self.licence.split()
        known = LICENCES.get(self.licence.lower().strip())
        if known or (HUB_LICENCE.fullmatch(self.licence) and not details):
            yield f"license: {yaml_string(known or self.licence)}"
            return
        yield "license: other"
        link = details.pop() if details and "/" in details[-1] else None
        name = " ".join(details) if first == "other" else self.licence
        if name:
            yield f"license_name: {yaml_string(name)}"
        if link:
            yield f"license_link: {yaml_string(link)}"

    def _body(self) -> Iterator[str]:
        yield f"# {self.name}\n"
        yield f"{self.source}: {self.description}.\n"
        yield "## Measured quality\n"
        yield from self._quality()
        yield "\n## Size\n"
        yield (
            f"{self.parameters:,} parameters, {self.bits_per_weight:.2f} bits per weight, "
            f"`{self.artifact}` is {size_text(self.size_bytes)}."
        )
        yield "\n## Run\n"
        yield f'```\ndsconv run {self.artifact} -p "How many primes are below 50?"\n```\n'
        yield RUN[self.format].format(artifact=self.artifact)
        yield "\n## Provenance\n"
        yield from self._provenance()

    def _quality(self) -> Iterator[str]:
        verdict = self.verdict
        state = "passed" if verdict.get("passed") else "**failed**"
        yield (
            f"Against the original on the same {verdict.get('tokens', 0):,} tokens, in "
            f"{verdict.get('runtime')} on {verdict.get('provider')}; verdict: {state}.\n"
        )
        yield "| figure | value | limit |\n|---|---|---|"
        for row in quality_rows(verdict):
            yield "| " + " | ".join(row) + " |"
        for failure in verdict.get("failures", ()):
            yield f"\nFailed: {failure}."

    def _provenance(self) -> Iterator[str]:
        at = f" at commit `{self.commit}`" if self.commit else ""
        yield f"- made from: {self.source}{at}"
        yield f"- licence of the source: {self.licence or 'not recorded in its files'}"
        if self.quantization is None:
            yield "- weights as they are in the source"
        else:
            settings = (f"{key} {value}" for key, value in self.quantization.items())
            yield f"- quantized: {', '.join(settings)}"
        yield f"- made by: dsconv {self.version}"
        yield "- `dsconv.json`: the recipe, and the sha256 of every file here and of the source"


def quality_rows(verdict: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """(figure, value, limit) of everything that the verdict holds."""
    limits = verdict.get("thresholds") or {}
    kl = verdict.get("kl") or {}
    if kl.get("mean") is not None:
        spread = "" if kl.get("stderr") is None else f" ± {kl['stderr']:.5f}"
        limit = _limit("≤", limits.get("max_kl"))
        yield "mean KL, nats per token", f"{kl['mean']:.5f}{spread}", limit
    for key, name in (("median", "median KL"), ("p99", "99th percentile"), ("max", "largest")):
        if kl.get(key) is not None:
            limit = _limit("≤", limits.get("max_kl_p99")) if key == "p99" else ""
            yield name, f"{kl[key]:.5f}", limit
    floor = (verdict.get("noise_floor") or {}).get("kl_mean")
    if floor is not None:
        yield "noise floor of the mean KL", f"{floor:.5f}", ""
    top1 = verdict.get("top1_agreement")
    if top1 is not None:
        yield "top-1 agreement", f"{top1:.4f}", _limit("≥", limits.get("min_top1"))
    shift = verdict.get("probability_shift")
    if shift is not None:
        limit = _limit("≤", limits.get("max_probability_shift"))
        yield "probability off by more than 0.1", f"{shift:.4f}", limit
    perplexity = verdict.get("perplexity") or {}
    for key in ("reference", "artifact"):
        if perplexity.get(key) is not None:
            yield f"perplexity of the {key}", f"{perplexity[key]:.4f}", ""
    if perplexity.get("ratio") is not None:
        limit = _limit("≤", limits.get("max_ppl_ratio"))
        yield "perplexity ratio", f"{perplexity['ratio']:.4f}", limit


def _limit(sign: str, value: float | None) -> str:
    return "" if value is None else f"{sign} {value:g}"
