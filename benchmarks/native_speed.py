"""The native engine beside the other CPU runtimes, each on its own quantization, in one run.

    python benchmarks/native_speed.py CHECKPOINT MODELS [--rounds 5] [--only int4,int8] [-o OUT.md]

CHECKPOINT is the unquantized model (`random_checkpoint.py` makes one of any shape). MODELS is a
folder for everything that is made from it; what is there already is used again. A peer whose
package is not installed, or that cannot do what a section asks, is left out and named. OUT.md
receives the tables, OUT.json every round.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dsconv.errors import ProviderError
from dsconv.runtime.bench.bench import BenchOptions, bench
from dsconv.runtime.bench.peers import PEERS, Peer
from dsconv.runtime.bench.report import Artifact, BenchReport, Figures
from dsconv.runtime.bench.subject import OURS, Subject
from dsconv.runtime.console import rate_text, say, size_text
from dsconv.runtime.demo.model import find_model

GENAI, LLAMA, OPENVINO = "onnxruntime-genai", "llama.cpp", "openvino"
GROUP_SIZE = 128
NO_INT8_CACHE = (GENAI,)


@dataclass(frozen=True)
class Section:
    """One interleaved run: a title, who takes part, what is timed."""

    name: str
    title: str
    subjects: tuple[Subject, ...]
    options: BenchOptions


class Models:
    """The folder of models, each made when it is first asked for."""

    def __init__(self, checkpoint: str, folder: Path) -> None:
        self._checkpoint, self._folder = checkpoint, folder
        folder.mkdir(parents=True, exist_ok=True)

    def ours(self, bits: int) -> str:
        options = ["--bits", bits, "--group-size", GROUP_SIZE, "--embedding-bits", bits]
        return self._native(self._checkpoint, f"dsconv-int{bits}", *options)

    def small(self) -> tuple[str, str]:
        """SmolLM2-135M -> (our file, llama.cpp's own)."""
        source = str(find_model())
        return self._native(source, "dsconv-smollm2", "--asymmetric"), source

    def _native(self, source: str, name: str, *options: object) -> str:
        output, quantized = self._folder / f"{name}.dsq", self._folder / f"{name}-checkpoint"
        if not output.exists():
            if not quantized.exists():
                _dsconv("quantize", source, *options, "--method", "rtn", "-o", quantized)
            _dsconv("export", quantized, "--format", "native", "-o", output)
        return str(output)

    def peer(self, peer: Peer, bits: int) -> str:
        output = self._folder / f"{peer.name}-int{bits}"
        if not output.exists():
            say(f"{peer.name}: building int{bits}")
            peer.build(self._checkpoint, bits, output)
        return str(output)


def _dsconv(*arguments: object) -> None:
    say(f"dsconv {' '.join(map(str, arguments))}")
    subprocess.run([sys.executable, "-m", "dsconv", *map(str, arguments)], check=True)


def installed() -> Iterator[Peer]:
    for peer in PEERS.values():
        try:
            peer.require()
        except ProviderError as error:
            say(f"left out: {error.message}: {error.hint}")
            continue
        yield peer


def sections(models: Models, threads: int, rounds: int, wanted: Sequence[str]) -> Iterator[Section]:
    """Those that are wanted; nothing is built for the others."""
    peers = list(installed())

    def everyone(bits: int, kv: str = "fp16") -> tuple[Subject, ...]:
        able = [peer for peer in peers if kv == "fp16" or peer.name not in NO_INT8_CACHE]
        theirs = (Subject(models.peer(p, bits), threads, p.name, kv=kv) for p in able)
        return Subject(models.ours(bits), threads, kv=kv), *theirs

    def both_threads() -> tuple[Subject, ...]:
        some = [s for s in everyone(4) if s.runtime in (OURS, GENAI)]
        return tuple(replace(s, threads=count) for s in some for count in (1, 2))

    def small() -> tuple[Subject, ...]:
        ours, theirs = models.small()
        peer = [Subject(theirs, threads, LLAMA)] if PEERS[LLAMA] in peers else []
        return Subject(ours, threads), *peer

    at_512 = BenchOptions(contexts=(512,), rounds=rounds)
    at_8k = BenchOptions(contexts=(8192,), rounds=rounds)
    known: dict[str, tuple[str, Callable[[], tuple[Subject, ...]], BenchOptions]] = {
        "int4": ("int4", lambda: everyone(4), at_512),
        "int8": ("int8", lambda: everyone(8), at_512),
        "8k": ("int4, cache in fp16 (onnxruntime-genai: fp32)", lambda: everyone(4), at_8k),
        "8k-int8": ("int4, cache in int8", lambda: everyone(4, "int8"), at_8k),
        "threads": ("int4, one thread and two", both_threads, at_512),
        "smollm2": ("SmolLM2-135M, llama.cpp on its own Q4_1 file", small, at_512),
    }
    for name in wanted or known:
        title, subjects, options = known[name]
        yield Section(name, title, subjects(), options)


# ---------------------------------------------------------------- tables


def table(section: Section, report: BenchReport) -> list[str]:
    """Markdown: a column per subject, a row per figure, the ratio to the best peer last."""
    subjects = section.subjects
    heads = [f"{_name(subject)}, {_threads(subject)}" for subject in subjects]
    lines = [f"### {section.title}", "", f"| | {' | '.join(heads)} | to the best peer |"]
    lines.append("|---" * (len(heads) + 2) + "|")
    for title, cells, ratio in _rows(subjects, report.artifacts):
        lines.append(f"| {title} | {' | '.join(cells)} | {ratio} |")
    others = report.foreign.median if report.foreign.values else 0.0
    low, high = (rate_text(value, "B") for value in report.bandwidth.quartiles)
    lines += [
        "",
        f"Read bandwidth in this run {rate_text(report.bandwidth.median, 'B')} (quartiles {low} "
        f"to {high}). Others used {others:.0%} of the machine; {report.discarded_rounds} rounds "
        f"thrown away{'; DISTURBED' if report.is_disturbed else ''}.",
        "",
    ]
    return lines


def _rows(
    subjects: Sequence[Subject], artifacts: Sequence[Artifact]
) -> Iterator[tuple[str, list[str], str]]:
    tokens = artifacts[0].prefill_tokens
    rates = {
        f"prefill {tokens}, tokens/s": [a.prefill for a in artifacts],
        f"prefill {tokens}, first of the process": [a.cold_prefill for a in artifacts],
    }
    contexts = sorted({d.context for a in artifacts for d in a.decodes})
    for context in contexts:
        found = [next(d for d in a.decodes if d.context == context) for a in artifacts]
        decode = [d.rate for d in found]
        yield f"decode at {context}, tokens/s", [_cell(f) for f in decode], _ratio(subjects, decode)
        yield "of the read bandwidth", [f"{d.fraction.median:.0%}" for d in found], ""
    for title, figures in rates.items():
        yield title, [_cell(f) for f in figures], _ratio(subjects, figures)
    for title, figures in (
        ("load, s", [a.load_seconds for a in artifacts]),
        (f"load and first token of {tokens}, s", [a.first_token_seconds for a in artifacts]),
    ):
        yield title, [_cell(f, "{:.2f}") for f in figures], _ratio(subjects, figures, less=True)
    yield "size on disk", [size_text(_size(Path(s.path))) for s in subjects], ""
    yield "peak memory", [size_text(a.peak_rss_bytes) for a in artifacts], ""
    yield "weights per token", [size_text(a.weight_bytes_per_token) for a in artifacts], ""


def _ratio(subjects: Sequence[Subject], figures: Sequence[Figures], less: bool = False) -> str:
    """Of our last column to the best peer, round by round: a change of the machine cancels."""
    ours = [f for s, f in zip(subjects, figures, strict=True) if s.runtime == OURS]
    theirs = [f for s, f in zip(subjects, figures, strict=True) if s.runtime != OURS]
    if not ours or not theirs:
        return ""
    best = (min if less else max)(theirs, key=lambda f: f.median)
    pairs = zip(ours[-1].values, best.values, strict=True)
    return f"{Figures.of(mine / other for mine, other in pairs).median:.2f}"


def _name(subject: Subject) -> str:
    return OURS if subject.runtime == OURS else subject.runtime


def _threads(subject: Subject) -> str:
    return "1 thread" if subject.threads == 1 else f"{subject.threads} threads"


def _cell(figures: Figures, form: str = "{:.1f}") -> str:
    low, high = (form.format(value) for value in figures.quartiles)
    return f"{form.format(figures.median)} ({low}–{high})"


def _size(path: Path) -> int:
    """Bytes of a file or of everything in a folder."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def machine(threads: int) -> str:
    """The processor and the versions, in one paragraph."""
    model = platform.processor() or platform.machine()
    information = Path("/proc/cpuinfo")
    if information.exists():
        names = [line for line in information.read_text().splitlines() if "model name" in line]
        model = names[0].split(":")[1].strip() if names else model
    packages = ["dsconv", "onnxruntime", *(peer.package for peer in installed())]
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    return f"{model}, {threads} threads, Python {platform.python_version()}; {versions}."


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("models", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", default="", help="names of sections, by commas")
    parser.add_argument("-o", "--output", type=Path, default=Path("native_speed.md"))
    a = parser.parse_args()
    wanted = [name for name in a.only.split(",") if name]
    lines, found = [machine(a.threads), ""], {}
    for section in sections(Models(a.checkpoint, a.models), a.threads, a.rounds, wanted):
        report = bench(section.subjects, section.options)
        found[section.name] = report.to_json()
        lines += table(section, report)
        # After every section: a long run that is stopped keeps what it has.
        a.output.write_text("\n".join(lines), "utf-8")
        a.output.with_suffix(".json").write_text(json.dumps(found, indent=1), "utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
