"""A real browser on this machine: Debian's Chromium, headless, spoken to by its DevTools protocol over a pipe."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from debian import have

PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
PACKAGES = ("chromium", "poppler-utils")  # the second reads what was printed
PHONE, DESKTOP = (390, 844), (1280, 800)
_ANSWER_S = 60


def unavailable() -> str:
    """Why there is no browser here, or nothing. Tries to install it first."""
    return have(lambda: bool(_program() and shutil.which("pdftotext")), PACKAGES)


def _program() -> str | None:
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@dataclass
class Browser:
    """A running Chromium. Messages are JSON, each closed by a zero byte."""

    process: subprocess.Popen[bytes]
    to: int
    back: int
    sent: int = 0
    pending: bytes = b""
    tabs: dict[str, "Tab"] = field(default_factory=dict)

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send a command and wait for its answer; events that come meanwhile go to their tabs."""
        self.sent += 1
        number, message = self.sent, {"id": self.sent, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        os.write(self.to, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + _ANSWER_S
        while True:
            answer = self._receive(deadline)
            if answer.get("id") == number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])

    def _receive(self, deadline: float) -> dict[str, Any]:
        while b"\0" not in self.pending:
            ready, _, _ = select.select([self.back], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, "the browser does not answer"
            block = os.read(self.back, 1 << 20)
            assert block, "the browser has gone"
            self.pending += block
        line, _, self.pending = self.pending.partition(b"\0")
        message = dict(json.loads(line))
        if "method" in message and message.get("sessionId") in self.tabs:
            self.tabs[message["sessionId"]].events.append(message)
        return message

    def open(self, path: Path, size: tuple[int, int] = DESKTOP, *, dark: bool = False, scripts: bool = True) -> "Tab":
        """Open a file as a person would, and wait until it has loaded."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = self.tabs[session] = Tab(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            tab.call(f"{domain}.enable")
        if not scripts:
            tab.call("Emulation.setScriptExecutionDisabled", value=True)
        tab.resize(*size)
        tab.media("screen", dark)
        tab.call("Page.navigate", url=path.resolve().as_uri())
        deadline = time.monotonic() + _ANSWER_S
        while not any(event["method"] == "Page.loadEventFired" for event in tab.events):
            self._receive(deadline)
        return tab


@dataclass
class Tab:
    """One open page, and everything it said since it was opened."""

    browser: Browser
    session: str
    target: str
    events: list[dict[str, Any]] = field(default_factory=list)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression (promises awaited); an exception fails the test."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def resize(self, width: int, height: int) -> None:
        phone = width < 600
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=2 if phone else 1,
            mobile=phone,
        )

    def media(self, kind: str, dark: bool = False) -> None:
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", media=kind, features=[scheme])

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """Press and release a key, such as ("Tab", 9)."""
        for kind in ("rawKeyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, modifiers=8 * shift
            )

    def complaints(self) -> list[str]:
        """Every message of the console above information, and every exception."""
        self.run("new Promise(done => setTimeout(done, 0))")
        found = []
        for event in self.events:
            params = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                found.append(str(params["exceptionDetails"]))
            elif event["method"] == "Log.entryAdded":
                found.append(str(params["entry"]))
            elif event["method"] == "Runtime.consoleAPICalled":
                found.append(str(params))
        return found

    def requests(self) -> list[str]:
        """Every address that the page asked for, beyond itself and what it carries."""
        asked = [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]
        return [url for url in asked[1:] if not url.startswith(("data:", "blob:"))]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))

    def pdf(self) -> bytes:
        """The page as it prints on A4."""
        self.media("print")
        done = self.call("Page.printToPDF", preferCSSPageSize=True)
        self.media("screen")
        return base64.b64decode(done["data"])

    def close(self) -> None:
        del self.browser.tabs[self.session]
        self.browser.call("Target.closeTarget", targetId=self.target)


@contextmanager
def running() -> Iterator[Browser]:
    """A browser with a profile of its own, and no network: every host but this machine's files is unknown to it."""
    program = _program()
    assert program
    (read_down, to), (back, write_up) = os.pipe(), os.pipe()
    read_down, write_up = (fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (read_down, write_up))

    def wire() -> None:  # Chromium reads commands from descriptor 3 and answers on 4
        os.dup2(read_down, 3)
        os.dup2(write_up, 4)

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [program, "--headless", "--remote-debugging-pipe", f"--user-data-dir={profile}", "--no-first-run"]
        command += ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
        command += ["--disable-background-networking", "--host-resolver-rules=MAP * ~NOTFOUND"]
        process = subprocess.Popen(
            command, preexec_fn=wire, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(read_down)
        os.close(write_up)
        browser = Browser(process, to, back)
        try:
            yield browser
        finally:
            browser.call("Browser.close")
            process.wait(timeout=_ANSWER_S)
            os.close(to)
            os.close(back)
