"""A real server on loopback and headless Chromium; a violation of the content security policy or a script error fails the test."""

from __future__ import annotations

import shutil
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn
from playwright.sync_api import Browser, Page, sync_playwright

from bowerbird_server.web.app import create_app
from bowerbird_testing.scene_frames import SceneSite

TOKEN = "browser-test-token-0123456789"


class WebServer:
    """uvicorn in a thread; can be stopped and started again on the same port."""

    def __init__(self, site: SceneSite) -> None:
        self._site = site
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        config = uvicorn.Config(
            create_app(self._site.folder, TOKEN), host="127.0.0.1", port=self.port, log_level="warning", lifespan="off"
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        deadline = time.monotonic() + 20
        while not self._server.started:
            assert time.monotonic() < deadline, "uvicorn did not start"
            time.sleep(0.02)

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=20)


@pytest.fixture(scope="session")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[SceneSite]:
    made = SceneSite(tmp_path / "data", seed=5)
    yield made
    made.close()


@pytest.fixture
def server(site: SceneSite) -> Iterator[WebServer]:
    running = WebServer(site)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def page(chromium: Browser, server: WebServer) -> Iterator[Page]:
    """A logged-in page, 1280 x 800."""
    context = chromium.new_context(viewport={"width": 1280, "height": 800}, base_url=server.url)
    context.set_default_timeout(15_000)
    opened = context.new_page()
    faults: list[str] = []
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on(
        "console",
        lambda message: faults.append(message.text) if "Content Security Policy" in message.text else None,
    )
    opened.goto(f"/login#token={TOKEN}")
    opened.get_by_label("Your name").fill("Ada")
    opened.get_by_role("button", name="Log in with the token").click()
    opened.wait_for_selector("#tiles")
    yield opened
    context.close()
    assert not faults
