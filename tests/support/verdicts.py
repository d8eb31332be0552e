"""Verdicts made by hand, for the tests of what judges and shows them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dsconv.runtime.verify.metrics import TokenScores, summarize
from dsconv.runtime.verify.tasks.statistics import Paired, Shares
from dsconv.runtime.verify.verdict import (
    Bucket,
    Circumstances,
    Finding,
    FreeRunning,
    LayerError,
    LimitCheck,
    NoiseFloor,
    Speed,
    TaskScore,
    Verdict,
    WorstToken,
)

ARTIFACT, REFERENCE = "out/R1-Distill-Qwen-1.5B-int4", "models/R1-Distill-Qwen-1.5B"
HOSTILE = '</style></svg><script src="http://evil.example/x.js">alert(1)</script><img src=x>&"\''
MATRICES = ("self_attn.q_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
FILES = ("model.onnx", "model.onnx.data", "tokenizer.json", "tokenizer_config.json", "dsconv.json")
CIRCUMSTANCES = Circumstances(
    artifact="model.dsq",
    artifact_files={"model.dsq": "0" * 64},
    reference="org/model",
    reference_hash="1" * 64,
    text="built-in",
    text_hash="2" * 64,
    runtime="native",
    provider="cpu",
    machine="a processor, 2 cores",
    threads=2,
    versions={"dsconv": "0.1.0"},
    date="2026-01-02T03:04:05+00:00",
    tokens_hash="3" * 64,
    window=512,
)


def scores_of(kl: NDArray[np.float64], seed: int = 0) -> TokenScores:
    """Plausible losses and confidences for given KL."""
    random = np.random.default_rng(seed)
    loss = random.exponential(1.2, len(kl))
    return TokenScores(
        kl,
        random.random(len(kl)) > np.minimum(kl * 2, 0.5),
        loss,
        loss + random.normal(0.2, 1.0, len(kl)) * np.sqrt(kl),
        random.beta(2.0, 0.7, len(kl)),
    )


def healthy(tokens: int = 4096, scale: float = 1.0) -> Verdict:
    """Passes all its checks at scale 1; everything is there."""
    random = np.random.default_rng(7)
    scores = scores_of(np.exp(random.normal(-5.6, 1.7, tokens)) * scale)
    noise = scores_of(np.exp(random.normal(-11.0, 1.5, 1024)), seed=1)
    summary = summarize(scores)
    return Verdict(
        summary=summary,
        scores=scores,
        buckets=_buckets(scores),
        noise_floor=NoiseFloor("bfloat16 against float32", summarize(noise)),
        worst_tokens=tuple(_worst(rank) for rank in range(10)),
        nodes_on_provider=1.0,
        checks=(
            LimitCheck("max-kl", "mean KL, nats per token", summary.kl_mean, 0.03, True, 0.001),
            LimitCheck("min-top1", "same top token", summary.top1_agreement, 0.93, False),
            LimitCheck(
                "max-kl-p99", "99th percentile of KL", summary.kl_p99, 0.6, True, source="file"
            ),
        ),
        findings=(),
        circumstances=Circumstances(
            ARTIFACT,
            {name: f"{index}a5e" * 16 for index, name in enumerate(FILES)},
            REFERENCE,
            "5f0c" * 16,
            "built-in",
            "77de" * 16,
            "onnxruntime",
            "CPUExecutionProvider",
            "x86_64, 2 cores, AVX-512 VNNI, 24 GiB",
            2,
            {"dsconv": "0.1.0", "onnxruntime": "1.22.0", "numpy": "2.1.0", "python": "3.12.3"},
            "2026-01-31T09:30:00+00:00",
            "c0de" * 16,
            2048,
        ),
        layers=tuple(
            LayerError(
                layer,
                f"model.layers.{layer}",
                33.0 - 0.35 * layer + 2.0 * np.sin(layer),
                0.9999 - 1e-5 * layer,
                {name: 20.0 + len(name) / 10 for name in MATRICES},
            )
            for layer in range(28)
        ),
        free_running=FreeRunning(4, 256, (31, 118, 256, 74), 1.031, 0.0, 0.25, 1.0, 0.75),
        tasks=(
            TaskScore(
                "data/gsm8k-100.jsonl",
                100,
                4,
                0.7625,
                0.0212,
                0.7775,
                0.0208,
                Paired(-0.015, (-0.0475, 0.0175), 9, 6, 0.607, 0.047, 2209),
                {"long": 0.71, "short": 0.81},
                {"long": 0.74, "short": 0.81},
                Shares(0.76, 0.0215, 0.775, 0.0211),
                Shares(0.82, 0.0386, 0.83, 0.0378),
                0.03,
                0.02,
            ),
        ),
        speeds=(
            Speed(REFERENCE, 3_554_000_000, None, 71.0, 4.6, 3_900_000_000),
            Speed(ARTIFACT, 1_120_000_000, summary.kl_mean, 96.0, 14.2, 1_450_000_000),
            Speed("out/R1-Distill-Qwen-1.5B-int8", 1_890_000_000, 0.0021, 104.0, 8.9, None),
            Speed("peers/q4_k_m.gguf", 1_117_000_000, 0.0405, 61.0, 13.1, 1_300_000_000),
        ),
    )


def broken() -> Verdict:
    """Fails, and names the place."""
    verdict = healthy(scale=9.0)
    layers = list(verdict.layers)
    layers[11] = replace(layers[11], sqnr_db=6.4, cosine=0.88)
    return replace(
        verdict,
        layers=tuple(layers),
        findings=(
            Finding(
                "model.layers.11.mlp.down_proj",
                "its scales are 1.02 times those of the source's weights",
                "quantize the checkpoint again; the file changed after it was written",
            ),
            Finding("tokenizer.json", "one merge of the source is missing", "export again"),
        ),
    )


def hostile() -> Verdict:
    """One token, figures that are not numbers, and text that tries to be code."""
    scores = TokenScores(*(np.array([np.nan]) for _ in range(5)))  # type: ignore[arg-type]
    nan = float("nan")
    summary = replace(
        healthy(64).summary, tokens=1, kl_mean=nan, kl_stderr=nan, kl_max=float("inf")
    )
    text = "שלום \u202eevil\u202c 你好世界，这是一个测试 \x1b[31m\x00\ud800 العربية " + HOSTILE
    long = "very-long-name-without-a-break-" * 30
    return Verdict(
        summary=summary,
        scores=scores,
        buckets=(Bucket("position", HOSTILE, summary), Bucket("confidence", long, summary)),
        noise_floor=None,
        worst_tokens=tuple(
            WorstToken(nan, 0, 0, text * 20, token, text * 20, "\n", 1.0, HOSTILE, 1e-12)
            for token in (HOSTILE, "مرحبا", " ", long)
        ),
        nodes_on_provider=0.0,
        checks=(
            LimitCheck("max-kl", HOSTILE, nan, 0.03, True),
            LimitCheck(long, long, None, float("inf"), False, source="baseline"),
        ),
        findings=(Finding(long + HOSTILE, text * 9, text), Finding("", "", "")),
        circumstances=Circumstances(
            *(f"/home/{HOSTILE}{long}", {HOSTILE: "0" * 64, long: "1" * 64}, text, HOSTILE, text),
            *(HOSTILE, long, HOSTILE, text, 0, {HOSTILE: HOSTILE}, HOSTILE),
        ),
        layers=(),
        speeds=(
            Speed(HOSTILE, 0, nan, nan, None, None),
            Speed(long, 10**15, float("inf"), 0.0, float("inf"), 0),
        ),
    )


def _buckets(scores: TokenScores) -> tuple[Bucket, ...]:
    position = np.arange(len(scores.kl)) % 2048
    places = {"0-256": (0, 256), "256-1024": (256, 1024), "1024+": (1024, 4096)}
    sureness = {"0-0.5": (0, 0.5), "0.5-0.9": (0.5, 0.9), "0.9-0.99": (0.9, 0.99)}
    sureness["0.99-1"] = (0.99, 1.1)
    found = []
    for of, values, limits in (
        ("position", position, places),
        ("confidence", scores.confidence, sureness),
    ):
        for name, (low, high) in limits.items():
            keep = (values >= low) & (values < high)
            if keep.any():
                part = TokenScores(*(v[keep] for v in vars(scores).values() if len(v)))
                found.append(Bucket(of, name, summarize(part)))  # type: ignore[arg-type]
    return tuple(found)


def _worst(rank: int) -> WorstToken:
    before = "So the total is 12 × 7 = 84, and we have to take away the\nfirst "
    return WorstToken(
        2.5 / (rank + 1),
        rank,
        17 * rank + 3,
        before * 3,
        "part",
        " of it.",
        " half",
        0.62,
        "",
        0.41,
    )


def random_scores(tokens: int = 4096, seed: int = 0, kl: float = 0.01) -> TokenScores:
    """Scores whose KL differs from text to text and token to token, as in real ones."""
    rng = np.random.default_rng(seed)
    hardness = np.repeat(rng.gamma(4, 0.25, -(-tokens // 64)), 64)[:tokens]
    loss = 3 * hardness * rng.exponential(1, tokens)
    return TokenScores(
        kl=kl * hardness * rng.exponential(1, tokens),
        agree=rng.random(tokens) > 4 * kl,
        reference_loss=loss,
        artifact_loss=loss + kl * rng.standard_normal(tokens),
        confidence=rng.uniform(0.1, 1, tokens),
        artifact_top=rng.integers(0, 100, tokens),
        artifact_confidence=rng.uniform(0.1, 1, tokens),
        reference_top=rng.integers(0, 100, tokens),
    )


def verdict_of(scores: TokenScores, *findings: Finding, **circumstances: Any) -> Verdict:
    return Verdict(
        summary=summarize(scores),
        scores=scores,
        buckets=(),
        noise_floor=None,
        worst_tokens=(),
        nodes_on_provider=1.0,
        checks=(),
        findings=findings,
        circumstances=Circumstances(**{**vars(CIRCUMSTANCES), **circumstances}),
    )
