"""Benchmarks: what is asked of whom and when, what is thrown away, and what is made of it."""

from __future__ import annotations

import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from command_line import assert_refused, call_main
from native_models import exported
from numpy.typing import NDArray
from places import ROOT
from safetensors import safe_open
from small_models import write_checkpoint

from dsconv.convert.formats.onnx.export import ExportOptions, export_onnx
from dsconv.convert.inspect.describe import describe
from dsconv.convert.open import open_checkpoint
from dsconv.convert.quantize.options import QuantizeOptions
from dsconv.convert.quantize.run import quantize_checkpoint
from dsconv.errors import InputError, UsageError
from dsconv.runtime.bench import bench, machine
from dsconv.runtime.bench.bench import BenchOptions, Round, quietest
from dsconv.runtime.bench.machine import MachineTime, ReadProbe, parse_statistics
from dsconv.runtime.bench.process import Worker
from dsconv.runtime.bench.report import Figures
from dsconv.runtime.bench.subject import BANDWIDTH, Opened, Subject, Timed
from dsconv.runtime.bench.weight_bytes import weight_bytes_per_token
from dsconv.runtime.bench.worker import tokens_of
from dsconv.runtime.console import sparkline
from dsconv.runtime.generate.timed import SessionRunner

# ---------------------------------------------------------------- the machine


STATISTICS = """cpu  100 20 30 4000 500 6 7 8 90 10
cpu0 50 10 15 2000 250 3 3 4 45 5
cpu1 50 10 15 2000 250 3 4 4 45 5
intr 12345
"""


def test_busy_time_leaves_out_idle_and_waiting_and_counts_guests_once() -> None:
    found = parse_statistics(STATISTICS, 100, 5.0)
    assert found == MachineTime(busy=1.71, wall=5.0, cpus=2)
    assert parse_statistics("intr 1\n", 100, 5.0) is None


@pytest.mark.parametrize(
    ("busy", "own", "share"), [(4.0, 1.0, 0.5), (1.0, 1.0, 0.0), (0.5, 1.0, 0.0), (99, 0, 1.0)]
)
def test_foreign_share(busy: float, own: float, share: float) -> None:
    later = MachineTime(10 + busy, 103.0, 2)
    assert later.foreign_share(MachineTime(10.0, 100.0, 2), own) == pytest.approx(share)


def test_the_systems_own_file_is_read() -> None:
    if not machine.STATISTICS.exists():
        assert machine.machine_time() is None
        return
    before = machine.machine_time()
    end = before.wall + 0.3 if before else 0.0
    while (after := machine.machine_time()) is not None and after.wall < end:
        pass
    assert before is not None
    assert after is not None
    assert after.busy > before.busy
    assert 0 <= after.foreign_share(before, 0.3) <= 1


def test_bandwidth_is_the_whole_buffer_over_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def record(part: NDArray[Any]) -> int:
        read.append(part.nbytes)
        return 0

    probe = ReadProbe(3, size=3 << 20)
    clock = itertools.count(0.0, 0.5)
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine.np, "max", record)
    assert probe.bytes_per_second() == 2 * (3 << 20)
    assert sum(read) == machine.PASSES * (3 << 20)
    assert len(read) == machine.PASSES * 3


def test_peak_memory_is_that_of_this_process() -> None:
    """In a process of its own: in this one the peak may lie far above what is in use now."""
    code = (
        "import numpy as np; from dsconv.runtime.memory import peak_rss_bytes as peak; "
        "before = peak(); block = np.ones(1 << 26, np.uint8); print(peak() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (1 << 25) < int(done.stdout) < (1 << 27)


# ---------------------------------------------------------------- figures


def test_quartiles_are_those_of_the_textbook() -> None:
    values = [3.0, 9.0, 1.0, 7.0, 4.0, 4.5]
    figures = Figures.of(values)
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    assert (figures.median, figures.quartiles) == (middle, (low, high))
    assert figures.to_json() == {
        "median": middle,
        "quartiles": [low, high],
        "rounds": values,
    }


def test_sparklines() -> None:
    assert sparkline(Figures.of([0, 7, 3.4, 3.6]).shares) == "▁█▄▅"
    assert sparkline(Figures.of([2, 2]).shares) == "▁▁"
    assert sparkline(Figures.of([]).shares) == ""


def test_the_quietest_rounds_stay_in_their_order() -> None:
    loads = [0.3, None, 0.1, 0.9, 0.2]
    rounds = [Round((index,), 1.0, load) for index, load in enumerate(loads)]
    assert [entry.turns[0] for entry in quietest(rounds, 3)] == [1, 2, 4]


# ---------------------------------------------------------------- rounds


class Clock:
    """Time passes when somebody works; `others` is what they use of one second, in turn."""

    def __init__(self, others: Iterator[float]) -> None:
        self.wall = self.busy = 0.0
        self.others = others
        self.log: list[tuple[Any, ...]] = []

    def work(self, seconds: float) -> None:
        """One processor of ours for so long, beside the others."""
        self.wall += seconds
        self.busy += seconds + next(self.others) * 2 * seconds

    def now(self) -> MachineTime:
        return MachineTime(self.busy, self.wall, 2)


class FakeWorker:
    """Prefill takes a millisecond per token, decode 10; the probe reads 1 GB/s."""

    clock: Clock

    def __init__(self, subject: Subject) -> None:
        self.subject, self.used = subject, 0.0
        self.clock.log.append(("start", subject.path))

    def open(self) -> Opened:
        length = 3000 if self.subject.path == "short" else 100_000
        return Opened("fake", "cpu", length, 0.25, {})

    def prefill(self, tokens: int) -> Timed:
        return self._work("prefill", tokens * 0.001)

    def decode(self, context: int, tokens: int) -> Timed:
        return self._work(f"decode at {context}", tokens * 0.01)

    def batch_limit(self, positions: int) -> int:
        return 1 if self.subject.path == "short" else 64

    def decode_many(self, context: int, batch: int, tokens: int) -> Timed:
        return self._work(f"{batch} at {context}", tokens * 0.02)

    def bandwidth(self) -> Timed:
        return Timed(1e9, 0, self.used)

    def close(self) -> None:
        self.clock.log.append(("stop", self.subject.path))

    kill = close

    def _work(self, what: str, seconds: float) -> Timed:
        self.clock.log.append((what, self.subject.path))
        self.clock.work(seconds)
        self.used += seconds
        return Timed(seconds, 1000 * len(self.clock.log), self.used)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock(itertools.repeat(0.0))
    FakeWorker.clock = found
    monkeypatch.setattr(bench, "Worker", FakeWorker)
    monkeypatch.setattr(bench, "machine_time", found.now)
    monkeypatch.setattr(bench, "weight_bytes_per_token", lambda subject, opened: 5_000_000)
    monkeypatch.setattr(bench.time, "process_time", lambda: 0.0)
    return found


def test_rounds_are_interleaved_and_figures_follow(clock: Clock) -> None:
    moved: list[int] = []
    options = BenchOptions(prefill=100, decode=50, contexts=(2960, 0), rounds=2)
    report = bench.bench([Subject("long", 2), Subject("short", 1)], options, moved.append)
    both = [("prefill", "long"), ("prefill", "short")]
    startup = [("start", "long"), both[0], ("start", "short"), both[1]]
    again = [("stop", "long"), *startup[:2], ("stop", "short"), *startup[2:]]
    at_zero = [("decode at 1", "long"), ("decode at 1", "short")]
    at_end = [("decode at 2960", "long")]
    stops = [("stop", "long"), ("stop", "short"), ("stop", "")]
    assert clock.log == [
        ("start", ""),
        *(startup + again),
        *(2 * both),
        *(3 * at_zero),  # the first fills the caches
        *(3 * at_end),  # 3010 positions do not fit into the other
        *stops,
    ]
    assert sum(moved) == bench.planned_rounds(options) == 8
    long, short = report.artifacts
    assert long.prefill.values == pytest.approx((1000, 1000))
    assert long.first_token_seconds.values == pytest.approx((0.35, 0.35))
    assert [decode.context for decode in long.decodes] == [0, 2960]
    assert [decode.context for decode in short.decodes] == [0]
    assert long.decodes[1].rate.median == pytest.approx(100)
    assert long.decodes[1].fraction.median == pytest.approx(0.5)  # 100/s of 5 MB, of 1 GB/s
    assert long.decodes[0].peak_rss_bytes < long.decodes[1].peak_rss_bytes == long.peak_rss_bytes
    assert (report.discarded_rounds, report.is_disturbed) == (0, False)


def test_batches_are_of_those_that_can(clock: Clock) -> None:
    options = BenchOptions(10, 50, (0,), rounds=2, batches=(1, 4), batch_context=300)
    report = bench.bench([Subject("long", 2), Subject("short", 1)], options)
    long, short = report.artifacts
    assert [(each.batch, each.context) for each in long.batches] == [(1, 300), (4, 300)]
    assert [each.rate.median for each in long.batches] == pytest.approx([50, 200])
    assert [each.batch for each in short.batches] == [1]
    assert [(each.batch, each.reason) for each in short.left_out] == [
        (4, "it holds 1 sequence of 350 tokens at once")
    ]
    assert long.left_out == ()
    assert clock.log[1:3] == [("start", "long"), ("start", "short")]  # asked before all else
    assert long.to_json()["batches"][1]["tokens_per_second"] == pytest.approx(200)


def test_disturbed_rounds_are_repeated(clock: Clock) -> None:
    clock.others = itertools.cycle([0.0, 0.4])
    report = bench.bench([Subject("long", 2)], BenchOptions(500, 50, (0,), rounds=2))
    # Every second round, and once more where the untimed filling shifts the turn.
    assert report.discarded_rounds == 4
    assert report.foreign.values == pytest.approx([0.0] * 6)
    assert not report.is_disturbed


def test_without_quiet_rounds_the_least_disturbed_count(clock: Clock) -> None:
    loads = [0.9, 0.3, 0.2, 0.8]
    clock.others = itertools.chain(loads, loads, [0.0], loads)
    report = bench.bench([Subject("long", 2)], BenchOptions(500, 50, (0,), rounds=2))
    assert report.foreign.values == pytest.approx([0.3, 0.2] * 3)
    assert report.discarded_rounds == 6
    assert report.is_disturbed
    content = report.to_json()
    assert content["disturbed"] is True
    assert content["foreign_load"]["rounds"] == pytest.approx([0.3, 0.2] * 3)


def test_processes_end_when_one_fails(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(worker: FakeWorker) -> Opened:
        if worker.subject.path == "bad":
            raise InputError("damaged", "fetch it again")
        return Opened("fake", "cpu", 100, 0.1, {})

    monkeypatch.setattr(FakeWorker, "open", refuse)
    with pytest.raises(InputError, match="damaged"):
        bench.bench([Subject("good", 1), Subject("bad", 1)], BenchOptions())
    stopped = {path for action, path in clock.log if action == "stop"}
    assert stopped == {"good", "bad", ""}


@pytest.mark.parametrize(
    "wrong",
    [
        {"prefill": 0},
        {"decode": 0},
        {"rounds": 0},
        {"contexts": ()},
        {"contexts": (-1,)},
        {"max_foreign": 1.5},
        {"max_foreign": float("nan")},
    ],
    ids=str,
)
def test_options_out_of_range(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError) as caught:
        BenchOptions(**wrong)
    assert caught.value.hint


# ---------------------------------------------------------------- one model


class Recorder:
    """A session that notes what is in its cache at every decode."""

    vocabulary, context_length = 8, 100

    def __init__(self) -> None:
        self.cache: list[int] = []
        self.decoded_at: list[int] = []

    @property
    def position(self) -> int:
        return len(self.cache)

    def reset(self) -> None:
        self.cache.clear()

    def truncate(self, length: int) -> None:
        del self.cache[length:]

    def prefill(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        self.cache.extend(tokens)
        return np.eye(8, dtype=np.float32)[5]

    def decode(self, token: int) -> NDArray[np.float32]:
        self.decoded_at.append(len(self.cache))
        return self.prefill([token])

    def extend(self, tokens: Sequence[int]) -> NDArray[np.float32]:
        raise AssertionError

    score = extend


def test_every_burst_starts_at_its_context() -> None:
    session = Recorder()
    runner = SessionRunner(session)
    assert runner.prefill([1] * 7) > 0
    assert session.cache == [1] * 7
    for context in (4, 4, 9):
        assert runner.decode([2] * context, 3) > 0
        assert session.cache == [2] * context + [5] * 3
    assert session.decoded_at == [4, 5, 6, 4, 5, 6, 9, 10, 11]
    runner.prefill([1])
    runner.decode([2] * 9, 1)
    assert session.cache == [2] * 9 + [5]


def test_texts_begin_alike() -> None:
    assert tokens_of(40)[:7] == tokens_of(7)
    assert set(tokens_of(500)) <= set(range(3, 100))


def stored_bytes(folder: Path, without: str) -> int:
    """Bytes of weights, scales and zero points, but for those whose name holds `without`."""
    total = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "numpy") as file:
            total += sum(
                file.get_tensor(name).nbytes
                for name in file.keys()  # noqa: SIM118  # no dictionary: it cannot be iterated
                if not name.endswith("weight_shape") and (not without or without not in name)
            )
    return total


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("head_bits", [None, 8])
def test_weight_bytes_are_those_of_the_files(
    tied: bool, head_bits: int | None, tmp_path: Path
) -> None:
    folder = write_checkpoint(tmp_path / "m", tie_word_embeddings=tied)
    opened = open_checkpoint(str(folder))
    subject = Subject(str(folder), 1)
    state = Opened("torch", "cpu", 1, 0.0, dict(opened.config))
    sizes = {parameter.name: parameter.size for parameter in opened.parameters.values()}
    table = 0 if tied else sizes["model.embed_tokens.weight"]
    assert weight_bytes_per_token(subject, state) == 4 * (sum(sizes.values()) - table)
    options = QuantizeOptions(head_bits=head_bits)
    quantize_checkpoint(opened, options, tmp_path / "q")
    export_onnx(open_checkpoint(str(tmp_path / "q")), ExportOptions(), tmp_path / "onnx")
    state = Opened("onnxruntime", "cpu", 1, 0.0, dict(opened.config))
    own_head = any("lm_head" in row.name for row in describe(str(tmp_path / "q")).tensors)
    wanted = stored_bytes(tmp_path / "onnx", "embed_tokens" if own_head else "")
    assert weight_bytes_per_token(Subject(str(tmp_path / "onnx"), 1), state) == wanted


# ---------------------------------------------------------------- processes


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    source = open_checkpoint(str(write_checkpoint(folder / "m")))
    quantize_checkpoint(source, QuantizeOptions(), folder / "q")
    export_onnx(open_checkpoint(str(folder / "q")), ExportOptions(), folder / "onnx")
    return folder / "onnx"


KEYS = {
    *("path", "runtime", "provider", "threads", "prefill_tokens_per_second"),
    *("decode_tokens_per_second", "decode_context", "load_seconds", "first_token_seconds"),
    *("peak_rss_bytes", "weight_bytes_per_token", "bandwidth_fraction"),
    *("prefill_tokens", "placement", "spread", "decode", "batches"),
    "batches_left_out",
}


BATCH_KEYS = {"batch", "context", "tokens_per_second", "spread", "peak_rss_bytes"}


def test_the_command_measures(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--rounds", 2, "--prefill", 40, "--decode", 8, "--threads", 1, "--json"]
    contexts = ["--context", 0, "--context", 300, "--context", 5000]
    outcome = call_main(monkeypatch, capsys, "bench", artifact, *options, *contexts)
    assert outcome.code == 0, outcome.err
    assert outcome.json["read_bandwidth_bytes_per_second"] > 1e8
    (found,) = outcome.json["artifacts"]
    assert set(found) == KEYS
    assert (found["runtime"], found["provider"], found["threads"]) == ("onnxruntime", "cpu", 1)
    assert found["path"] == str(artifact)
    assert [decode["context"] for decode in found["decode"]] == [0, 300]
    assert (found["decode_context"], found["prefill_tokens"]) == (0, 40)
    assert found["first_token_seconds"] > found["load_seconds"] > 0
    assert found["prefill_tokens_per_second"] > 0
    assert found["peak_rss_bytes"] > 20_000_000
    for decode in found["decode"]:
        assert len(decode["tokens_per_second"]["rounds"]) == 2
    first = found["decode"][0]
    assert found["decode_tokens_per_second"] == first["tokens_per_second"]["median"]
    assert found["bandwidth_fraction"] == first["bandwidth_fraction"]["median"]
    speeds = first["tokens_per_second"]["rounds"]
    fractions = first["bandwidth_fraction"]["rounds"]
    assert (
        0
        < fractions[0]
        == pytest.approx(
            speeds[0]
            * found["weight_bytes_per_token"]
            / outcome.json["read_bandwidth"]["rounds"][4]
        )
    )


def test_many_sequences_of_a_native_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(write_checkpoint(tmp_path / "m"), tmp_path / "m.dsq")
    options = ["--rounds", 1, "--prefill", 20, "--decode", 4, "--threads", 1, "--context", 20]
    native = tmp_path / "m.dsq"
    asked = ["--batch", "3, 1,3,1,900"]
    outcome = call_main(monkeypatch, capsys, "bench", native, *options, *asked, "--json")
    assert outcome.code == 0, outcome.err
    found = outcome.json["artifacts"][0]["batches"]
    assert [(each["batch"], each["context"]) for each in found] == [(1, 20), (3, 20)]
    assert all(each["tokens_per_second"] > 0 for each in found)
    assert all(set(each) == BATCH_KEYS for each in found)
    (left,) = outcome.json["artifacts"][0]["batches_left_out"]
    assert (left["batch"], left["context"]) == (900, 20)
    assert "256 sequences of 24 tokens" in left["reason"]
    outcome = call_main(monkeypatch, capsys, "bench", native, *options, *asked)
    assert "900 at once left out: it holds 256 sequences" in outcome.out
    assert "3 at once at 20" in outcome.out
    assert "times one alone" in outcome.out


def test_batches_that_nobody_can_do_are_refused_at_once(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    model = write_checkpoint(tmp_path / "m", max_position_embeddings=128)
    exported(model, tmp_path / "m.dsq")

    def no_rounds(*arguments: object) -> None:
        raise AssertionError("something was timed")

    monkeypatch.setattr(bench._Processes, "rounds", no_rounds)

    def refused(code: int, *words: str, arguments: Sequence[object]) -> None:
        assert_refused(call_main(monkeypatch, capsys, "bench", *arguments), code, *words)

    native = [tmp_path / "m.dsq", "--threads", 1]
    several = [*native, "--batch", "2,4"]
    beyond = "512 tokens and 64 more are beyond its context of 128"
    refused(4, beyond, "--context 64", arguments=several)
    refused(4, "--context 1 --decode 127", arguments=[*several, "--decode", 200, "--context", 1])
    refused(
        4,
        "256 sequences of 94",
        "--batch 256",
        arguments=[*native[:1], "--batch", "300", "--context", 30],
    )
    small = ["--context", 60, "--cache-memory", "1"]  # one block of 256 positions is always there
    refused(4, "1 sequence of 124 tokens", arguments=[*several, *small])
    quantize_checkpoint(open_checkpoint(str(model)), QuantizeOptions(), tmp_path / "q")
    fixed = ExportOptions("std17", context_length=128, prefill_length=8)
    export_onnx(open_checkpoint(str(tmp_path / "q")), fixed, tmp_path / "fixed")
    one = [tmp_path / "fixed", "--batch", "2", "--context", 60]
    refused(4, "1 sequence of 124", "export a .dsq", arguments=one)


def test_the_table(
    artifact: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    options = ["--rounds", 1, "--prefill", 20, "--decode", 4, "--threads", 1, "--context", 0]
    outcome = call_main(monkeypatch, capsys, "bench", artifact, *options)
    assert outcome.code == 0, outcome.err
    for words in ("prefill 20", "decode at 0", "of the bandwidth", "peak memory"):
        assert words in outcome.out
    assert "read bandwidth" in outcome.out


def test_an_error_in_the_process_is_the_same_here(tmp_path: Path, artifact: Path) -> None:
    (tmp_path / "genai_config.json").write_text("{}")
    worker = Worker(Subject(str(tmp_path), 1))
    with pytest.raises(InputError, match=r"genai_config\.json"):
        worker.open()
    worker.kill()
    wrong = Worker(Subject(str(artifact), 1, provider="tpu"))
    with pytest.raises(UsageError, match="tpu"):
        wrong.open()
    wrong.kill()


def test_a_process_that_dies_is_reported() -> None:
    worker = Worker(Subject("somewhere", 1, BANDWIDTH))
    worker._process.kill()
    with pytest.raises(InputError, match="somewhere: its process ended with code -9"):
        worker.bandwidth()
    worker.kill()


def test_refused_on_the_command_line(
    artifact: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def refused(code: int, *words: str, arguments: Sequence[object]) -> None:
        assert_refused(call_main(monkeypatch, capsys, "bench", *arguments), code, *words)

    refused(3, "nowhere", arguments=[tmp_path / "nowhere"])
    refused(2, "context", arguments=[artifact, "--context", "-1"])
    refused(2, "--batch", "1,4,16", arguments=[artifact, "--batch", "4,x"])
    for wrong in ("1.5", "-4", "", " ", "1,,4", "²", "1e3", "4;8", "9" * 5000):
        refused(2, "--batch", "1,4,16", arguments=[artifact, f"--batch={wrong}"])
    refused(2, "batch of no sequences", arguments=[artifact, "--batch", "4,0"])
    refused(2, "99999999", "65536", arguments=[artifact, "--batch", "1,99999999"])
    refused(2, "--cache-memory", "--batch", arguments=[artifact, "--cache-memory", "1GiB"])
    wrong_size = ["--batch", "4", "--cache-memory", "much"]
    refused(2, "much", arguments=[artifact, *wrong_size])
    refused(2, "'vllm'", "llama.cpp", arguments=[artifact, "--against", "vllm"])
    genai = ["--against", "onnxruntime-genai"]
    refused(2, "--checkpoint", arguments=[artifact, *genai])
    refused(2, "bits", arguments=[artifact, *genai, "--checkpoint", "x", "--bits", 3])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    hint = "pip install llama-cpp-python"
    refused(7, hint, arguments=[artifact, "--against", "llama.cpp", "--checkpoint", "x"])


def test_json_is_documented() -> None:
    documents = ROOT / "docs"
    text = (documents / "json.md").read_text("utf-8") + (documents / "bench.md").read_text("utf-8")
    for key in KEYS | {"foreign_load", "discarded_rounds", "disturbed", "read_bandwidth"}:
        assert f"`{json.dumps(key)[1:-1]}`" in text, key
