"""A headless Chromium for the tests, spoken to over a pipe in its DevTools protocol.

Names are resolved to nothing and the proxy does not exist, so a request that leaves the page fails;
it is noted before it does.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
TIMEOUT = 60.0  # seconds for one answer, on a busy machine
FLAGS = (
    "--headless=new",
    "--remote-debugging-pipe",
    "--no-sandbox",  # fails for root and in containers; the pages are our own
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-extensions",
    "--disable-background-networking",
    "--no-first-run",
    "--hide-scrollbars",
    "--proxy-server=http://127.0.0.1:1",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)


def find_browser() -> str | None:
    return next((path for path in map(shutil.which, NAMES) if path), None)


@dataclass
class Tab:
    """One page; `messages` are what the console said, `requests` the addresses asked for."""

    process: subprocess.Popen[bytes]
    commands: int  # file descriptors of the two pipes
    answers: int
    session: str = ""
    messages: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    loads: int = 0
    _buffer: bytes = b""
    _count: int = 0

    def call(self, method: str, **arguments: Any) -> dict[str, Any]:
        """Send a command and wait for its answer, noting events on the way."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": arguments}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._count:
                assert "error" not in answer, f"{method}: {answer['error']}"
                result: dict[str, Any] = answer["result"]
                return result

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            ready, _, _ = select.select([self.answers], [], [], TIMEOUT)
            piece = os.read(self.answers, 1 << 20) if ready else b""
            assert piece, "the browser does not answer"
            self._buffer += piece
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        self._note(message.get("method", ""), message.get("params", {}))
        return message

    def _note(self, method: str, event: dict[str, Any]) -> None:
        if method == "Log.entryAdded":
            self.messages.append(event["entry"]["text"])
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(str(event["args"]))
        elif method == "Runtime.exceptionThrown":
            self.messages.append(str(event["exceptionDetails"]))
        elif method == "Network.requestWillBeSent":
            self.requests.append(event["request"]["url"])
        elif method == "Page.loadEventFired":
            self.loads += 1

    def open(self, page: Path, width: int, height: int = 900, scheme: str = "light") -> None:
        """Load a file as a screen of that size shows it."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.call("Emulation.setEmulatedMedia", features=features)
        self.go(page.as_uri())

    def go(self, address: str) -> None:
        before = self.loads
        self.call("Page.navigate", url=address)
        while self.loads == before:
            self._read()

    def wait_for(self, expression: str) -> None:
        """Until it is true."""
        deadline = time.monotonic() + TIMEOUT
        while not self.evaluate(expression):
            assert time.monotonic() < deadline, expression
            time.sleep(0.05)

    def evaluate(self, expression: str) -> Any:
        """The value of JavaScript run from outside the page, which its policy does not stop."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def screenshot(self, target: Path) -> None:
        """The whole page as PNG."""
        answer = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=True)
        target.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self) -> bytes:
        answer = self.call("Page.printToPDF", preferCSSPageSize=True, printBackground=True)
        return base64.b64decode(answer["data"])


@contextmanager
def browser(program: str, profile: Path, allowed: str = "") -> Iterator[Tab]:
    """A tab of a browser of its own, ended with the block. allowed: a host that it may reach."""
    rest = f", EXCLUDE {allowed}" if allowed else ""
    flags = [f"{flag}{rest}" if "MAP *" in flag else flag for flag in FLAGS]
    command_end, commands = os.pipe()
    answers, answer_end = os.pipe()
    # The browser reads commands from descriptor 3 and answers on 4.
    shell = f'exec "$0" "$@" 3<&{command_end} 4>&{answer_end}'
    process = subprocess.Popen(
        ["bash", "-c", shell, program, *flags, f"--user-data-dir={profile}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        pass_fds=(command_end, answer_end),
    )
    os.close(command_end)
    os.close(answer_end)
    tab = Tab(process, commands, answers)
    try:
        target = tab.call("Target.createTarget", url="about:blank")["targetId"]
        session = tab.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab.session = session
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.call(f"{domain}.enable")
        yield tab
    finally:
        os.close(commands)  # the browser ends when its pipe does
        os.close(answers)
        deadline = time.monotonic() + 10
        while process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if process.poll() is None:
            process.kill()
            process.wait()
