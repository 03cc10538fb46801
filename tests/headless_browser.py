"""A real headless Chromium that opens a page, driven by its own debugging protocol through two pipes."""

import base64
import fcntl
import io
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

NAMES = ("chromium", "chromium-browser", "chromium-headless-shell", "google-chrome", "google-chrome-stable")
# The sandbox is for pages from strangers, and does not start for root.
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
         "--remote-debugging-pipe")  # fmt: skip

WAIT_S = 60  # for what a page is waited for: the machine may be busy


class Page:
    """A page that is open, with what was said and asked for while it loaded.

    Attributes:
        complaints: Errors and warnings of the console, and exceptions.
        requests: URLs that the page asked for, itself included.
    """

    def __init__(self, commands, answers):
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self._commands, self._answers = commands, answers
        self._calls, self._session, self._is_loaded = 0, None, False
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._call(f"{domain}.enable")

    def open(self, place: Path | str) -> "Page":
        """Open a file, or a URL, and wait until all of it has loaded."""
        self.resize(1100)
        self._is_loaded = False
        self._call("Page.navigate", url=place if isinstance(place, str) else place.resolve().as_uri())
        while not self._is_loaded:
            self._note(self._read())
        self.evaluate("0")  # what the load event set off has been told before this is answered
        return self

    def evaluate(self, expression: str):
        """Return the value of a JavaScript expression in the page."""
        return self._call("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until an expression is true of the page."""
        deadline = time.monotonic() + WAIT_S
        while not self.evaluate(f"!!({expression})"):
            assert time.monotonic() < deadline, (expression, self.complaints, self.evaluate("document.body.innerText"))
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """Click where the first element of a selector can be seen, with the mouse."""
        x, y = self.evaluate(
            f"(e => (e.scrollIntoView({{block: 'center'}}), (r => [r.x + r.width / 2, r.y + r.height / 2])"
            f"(e.getBoundingClientRect())))(document.querySelector({selector!r}))"
        )
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def write(self, selector: str, text: str) -> None:
        """Put a text into a field in the place of what it holds."""
        self.evaluate(f"document.querySelector({selector!r}).focus(); document.activeElement.select()")
        self._call("Input.insertText", text=text)

    def press(self, key: str, code: int, *, ctrl: bool = False) -> None:
        """Press a key, by its name and its number."""
        one = {"key": key, "windowsVirtualKeyCode": code, "modifiers": 2 if ctrl else 0}
        self._call("Input.dispatchKeyEvent", type="keyDown", text="\r" if key == "Enter" else "", **one)
        self._call("Input.dispatchKeyEvent", type="keyUp", **one)

    def prefer(self, scheme: str) -> None:
        """Make the reader prefer "light" or "dark" pages."""
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])

    def resize(self, width: int) -> None:
        """Make the window so many pixels wide."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)

    def print(self) -> None:
        """Show the page as it would be printed."""
        self._call("Emulation.setEmulatedMedia", media="print")

    def photograph(self, selector: str):
        """Return what the first element of a selector looks like, as an array of shape (height, width, 3)."""
        import numpy as np
        from PIL import Image

        clip = self.evaluate(
            f"(r => ({{x: r.x + scrollX, y: r.y + scrollY, width: r.width, height: r.height, scale: 1}}))"
            f"(document.querySelector({selector!r}).getBoundingClientRect())"
        )
        shot = self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(shot))).convert("RGB"))

    def _call(self, method: str, **parameters):
        self._calls += 1
        message = {"id": self._calls, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._commands.write(json.dumps(message).encode() + b"\0")
        self._commands.flush()
        while (answer := self._read()).get("id") != self._calls:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        return answer["result"]

    def _read(self) -> dict:
        message = bytearray()
        while (byte := self._answers.read(1)) != b"\0":
            assert byte, "the browser has gone"
            message += byte
        return json.loads(message)

    def _note(self, event: dict) -> None:
        kind, told = event.get("method"), event.get("params", {})
        if kind == "Page.loadEventFired":
            self._is_loaded = True
        elif kind == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif kind == "Runtime.exceptionThrown":
            self.complaints.append(told["exceptionDetails"]["text"])
        elif kind == "Page.javascriptDialogOpening":
            self.complaints.append(f"dialog: {told['message']}")
        elif kind == "Log.entryAdded" and told["entry"]["level"] in ("warning", "error"):
            self.complaints.append(told["entry"]["text"])
        elif kind == "Runtime.consoleAPICalled" and told["type"] in ("warning", "error", "assert"):
            self.complaints.append(json.dumps(told["args"]))


@contextmanager
def open_browser(profile: Path) -> Iterator:
    """Give a function that opens a file or a URL in a new page; skip the test where there is no Chromium."""
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine; apt-get install chromium is enough")
    theirs, ours = os.pipe()
    answers, say = os.pipe()

    def number_pipes() -> None:  # the protocol is spoken on 3 and 4
        high = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (theirs, say)]  # out of the way first
        for number, end in enumerate(high, 3):
            os.dup2(end, number)

    browser = subprocess.Popen(
        [program, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, close_fds=False,
        preexec_fn=number_pipes,
    )  # fmt: skip
    for end in (theirs, say):
        os.close(end)
    with open(ours, "wb") as commands, open(answers, "rb") as replies:
        try:
            yield lambda path: Page(commands, replies).open(path)
        finally:
            browser.terminate()
            browser.wait(10)
