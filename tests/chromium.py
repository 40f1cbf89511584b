"""A headless Chromium for tests, spoken to in its DevTools protocol over two pipes: no driver to install."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--remote-debugging-pipe",
)
# Seconds without an answer after which the browser is given up: a fence against waiting for ever, not a measurement.
_PATIENCE = 120


class Chromium:
    """One tab. `events` holds what the browser told of its own accord: (method, params)."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        to_browser, self._out = os.pipe()
        self._in, from_browser = os.pipe()

        def take_pipes() -> None:  # the browser reads from descriptor 3 and writes to 4
            reads, writes = os.dup(to_browser), os.dup(from_browser)
            os.dup2(reads, 3)
            os.dup2(writes, 4)

        command = [PROGRAM, *_FLAGS, f"--user-data-dir={profile}", "about:blank"]
        self._process = subprocess.Popen(
            command, preexec_fn=take_pipes, pass_fds=(3, 4), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        os.close(to_browser)
        os.close(from_browser)
        self._buffer = b""
        self._count = 0
        self._session: str | None = None
        self.events: list[tuple[str, dict[str, Any]]] = []
        [page] = [t for t in self.send("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.send("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.send(f"{domain}.enable")

    def close(self) -> None:
        """End the browser."""
        self._process.terminate()
        self._process.wait(_PATIENCE)
        os.close(self._out)
        os.close(self._in)

    def send(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._count += 1
        message: dict[str, Any] = {"id": self._count, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._count:
            pass
        assert "error" not in answer, f"{method}: {answer['error']}"
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, page: Path) -> None:
        """Load a page and wait until all of it, pictures included, is there."""
        self.events.clear()
        self.send("Page.navigate", url=page.as_uri())
        while not any(method == "Page.loadEventFired" for method, _ in self.events):
            self._next()

    def value(self, expression: str) -> Any:
        """The value of a JavaScript expression; of a promise, what it comes to."""
        done = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def settle(self) -> None:
        """Wait for two frames: what was asked for is laid out and painted."""
        self.value("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))")

    def size(self, width: int, height: int, *, touch: bool = False, scale: float = 1) -> None:
        """Give the page a window of this size, and fingers if `touch`."""
        self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=scale, mobile=touch
        )
        self.send("Emulation.setTouchEmulationEnabled", enabled=touch)

    def media(self, kind: str = "", features: Mapping[str, str] | None = None) -> None:
        """Pretend to be a printer ("print"), or a person who prefers dark, and so on."""
        told = [{"name": name, "value": value} for name, value in (features or {}).items()]
        self.send("Emulation.setEmulatedMedia", media=kind, features=told)

    def mouse(self, kind: str, x: float, y: float) -> None:
        """Press, move or release the left button at a point of the window."""
        name = {"press": "mousePressed", "move": "mouseMoved", "release": "mouseReleased"}[kind]
        buttons = 0 if kind == "release" else 1
        self.send("Input.dispatchMouseEvent", type=name, x=x, y=y, button="left", buttons=buttons, clickCount=1)

    def touch(self, kind: str, *points: tuple[float, float]) -> None:
        """Touch: start, move or end, with the fingers that are down."""
        name = {"start": "touchStart", "move": "touchMove", "end": "touchEnd"}[kind]
        self.send("Input.dispatchTouchEvent", type=name, touchPoints=[{"x": x, "y": y} for x, y in points])

    def key(self, name: str, code: int) -> None:
        """Press and release a key, by its name and its Windows key code."""
        for kind in ("rawKeyDown", "keyUp"):
            self.send("Input.dispatchKeyEvent", type=kind, key=name, code=name, windowsVirtualKeyCode=code)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return base64.b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            watch = threading.Timer(_PATIENCE, self._process.kill)
            watch.start()
            data = os.read(self._in, 1 << 20)
            watch.cancel()
            assert data, "the browser has gone"
            self._buffer += data
        line, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append((message["method"], message["params"]))
        return message
