"""`dsconv pull` of one large file against curl and sha256sum, in turn, from the same local server.

    python benchmarks/pull_speed.py SCRATCH_FOLDER [--megabytes 1000] [--rounds 5]

The server (tests/support/hub_server.py) is a process of its own and sends with sendfile. dsconv's
time is that of the whole command, from its start to its end, with the fsync that curl does not do;
beside it, that of the download alone. openssl hashes with the processor's own instructions, where
there are any, as Python does; sha256sum often does not.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

SERVER = Path(__file__).parents[1] / "tests" / "support" / "hub_server.py"
MODEL, FILE = "org/large", "model.safetensors"


def write_model(root: Path, size: int) -> None:
    folder = root / MODEL
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    generator = np.random.default_rng(0)
    with (folder / FILE).open("wb") as file:
        for start in range(0, size, 1 << 24):
            file.write(generator.bytes(min(1 << 24, size - start)))


def shell(command: str) -> None:
    subprocess.run(["bash", "-ceu", "set -o pipefail; " + command], check=True)


def pull(url: str, scratch: Path) -> float:
    """-> seconds of the download alone."""
    variables = {"HF_ENDPOINT": url, "HF_HOME": str(scratch / "hf"), "XDG_CACHE_HOME": str(scratch)}
    command = [sys.executable, "-m", "dsconv", "pull", MODEL, "--json"]
    environment = {**os.environ, **variables, "HF_HUB_OFFLINE": "0", "NO_PROXY": "*"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True)
    return float(json.loads(done.stdout)["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scratch", type=Path)
    parser.add_argument("--megabytes", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    size = arguments.megabytes * 10**6
    scratch: Path = arguments.scratch / "pull-speed"
    shutil.rmtree(scratch, ignore_errors=True)
    write_model(scratch / "served", size)
    server = [sys.executable, str(SERVER), str(scratch / "served")]
    with subprocess.Popen(
        server, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        measure(url, scratch, size, arguments.rounds)
        process.stdin.close() if process.stdin else None
    shutil.rmtree(scratch)


def measure(url: str, scratch: Path, size: int, rounds: int) -> None:
    target = scratch / "download"
    target.mkdir()
    body = f"curl -sfL --noproxy '*' {url}/{MODEL}/resolve/main/{FILE}"
    file = target / FILE
    ways: dict[str, Callable[[], float | None]] = {
        "curl, then sha256sum": lambda: shell(f"{body} -o {file}; sha256sum {file} >{target}/sum"),
        "curl | tee | sha256sum": lambda: shell(f"{body} | tee {file} | sha256sum >{target}/sum"),
        "curl, then openssl": lambda: shell(
            f"{body} -o {file}; openssl sha256 {file} >{target}/sum"
        ),
        "curl, then sha256sum, then sync": lambda: shell(
            f"{body} -o {file}; sha256sum {file} >{target}/sum; sync {file}"
        ),
        "curl alone": lambda: shell(f"{body} -o {file}"),
        "dsconv pull": lambda: pull(url, target),
    }
    if shutil.which("openssl") is None:
        del ways["curl, then openssl"]
    seconds: dict[str, list[float]] = {name: [] for name in [*ways, "dsconv pull, download alone"]}
    pull(url, target)  # the server computes its hashes
    for _ in range(rounds):
        for name, way in ways.items():
            shutil.rmtree(target)
            target.mkdir()
            os.sync()  # nobody pays for what another has written
            start = time.perf_counter()
            alone = way()
            seconds[name].append(time.perf_counter() - start)
            if alone is not None:
                seconds["dsconv pull, download alone"].append(alone)
    ours = statistics.median(seconds["dsconv pull"])
    print(f"{'':32} {'seconds':>8} {'MB/s':>7}   dsconv pull's speed in % of this")
    for name, times in seconds.items():
        median = statistics.median(times)
        print(f"{name:32} {median:8.2f} {size / median / 1e6:7.0f} {100 * median / ours:9.0f}")


if __name__ == "__main__":
    main()
