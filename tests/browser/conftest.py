"""A JupyterLab of its own, and a Chromium to look at it with."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "tests"
SETTINGS = {  # no news dialog over the page; every cell in the page, also those far below
    "apputils-extension/notification": {
        "fetchNews": "false",
        "checkForUpdates": False,
        "doNotDisturbMode": True,
    },
    "notebook-extension/tracker": {"windowingMode": "none"},
}


@pytest.fixture(scope="session")
def chromium():
    """Path of a Chromium or Chrome."""
    names = [os.environ.get("CHROMIUM", ""), "chromium", "chromium-browser", "google-chrome"]
    found = next((path for path in map(shutil.which, filter(None, names)) if path), None)
    if found is None:
        pytest.skip("no Chromium found: set CHROMIUM to one, or put chromium on the PATH")
    return found


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    """Start JupyterLab on copies of the notebooks; its folder and its address."""
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    home = tmp_path_factory.mktemp("lab")
    folder = home / "notebooks"
    shutil.copytree(ROOT / "notebooks", folder, ignore=shutil.ignore_patterns(".*"))
    for name, values in SETTINGS.items():
        file = home / "settings" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        key: value
        for key, value in os.environ.items()
        if key not in ("CATLIB_HEADLESS", "MPLBACKEND")
    }
    environment["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    environment["JUPYTERLAB_SETTINGS_DIR"] = str(home / "settings")
    for name in (
        "JUPYTERLAB_WORKSPACES_DIR",
        "JUPYTER_CONFIG_DIR",
        "JUPYTER_DATA_DIR",
        "JUPYTER_RUNTIME_DIR",
        "IPYTHONDIR",
    ):
        environment[name] = str(home / name.lower())
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ip=127.0.0.1",
        f"--port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.expose_app_in_browser=True",
    ]
    with open(home / "log", "w") as log:
        server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                urlopen(f"{address}/api/status?token={TOKEN}", timeout=5).close()
                break
            except (URLError, OSError):
                assert server.poll() is None, (home / "log").read_text()
                time.sleep(0.5)
        else:
            pytest.fail(f"JupyterLab did not start:\n{(home / 'log').read_text()}")
        yield folder, address
    finally:
        server.terminate()  # ends its kernels too
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


@pytest.fixture(scope="session")
def browser(chromium):
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed (extra: test)"
    )
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=chromium,
            args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"],
        )
        yield browser
        browser.close()


class Page:
    """A notebook, open in JupyterLab."""

    KERNEL = "jupyterapp.shell.currentWidget?.context?.sessionContext?.session?.kernel"

    def __init__(self, browser, address: str, name: str):
        self.page = browser.new_page(viewport={"width": 1000, "height": 1250})
        self.page.goto(f"{address}/lab/tree/{name}?token={TOKEN}&reset", timeout=60_000)
        self.page.wait_for_selector(".jp-Notebook .jp-Cell", timeout=60_000)
        self.page.evaluate("jupyterapp.commands.execute('application:toggle-left-area')")
        self.page.wait_for_function(f"{self.KERNEL}?.status === 'idle'", timeout=60_000)

    def run_all(self) -> None:
        """Run every cell, to the end."""
        done = self.page.evaluate("() => jupyterapp.commands.execute('notebook:run-all-cells')")
        errors = self.page.locator(
            ".jp-OutputArea-output[data-mime-type='application/vnd.jupyter.error']"
        )
        assert done is not False and errors.count() == 0, errors.all_inner_texts()

    def ask(self, expression: str) -> str:
        """What the kernel answers to an expression."""
        request = (
            "{code: '', silent: false, store_history: false, "
            "user_expressions: {answer: expression}}"
        )
        ask = f"async expression => (await {self.KERNEL}.requestExecute({request}).done).content"
        reply = self.page.evaluate(ask, expression)
        answer = reply["user_expressions"]["answer"]
        assert answer["status"] == "ok", answer
        return answer["data"]["text/plain"]

    def close(self) -> None:
        self.page.evaluate(
            "() => jupyterapp.shell.currentWidget?.context.sessionContext.shutdown()"
        )
        self.page.close()


@pytest.fixture
def open_notebook(lab, browser):
    """``open_notebook(name)``: a :class:`Page`, its kernel idle."""
    pages = []

    def open_(name: str) -> Page:
        pages.append(Page(browser, lab[1], name))
        return pages[-1]

    yield open_
    for page in pages:
        page.close()
