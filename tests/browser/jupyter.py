"""JupyterLab, started by the project's own command, driven in a real browser; every folder of its own is temporary."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any

import nbformat

from grokscope.cli.lab import command, free
from tests.browser.host import new_page

TOKEN = "fox"
READY = """() => {
  const app = window.jupyterapp; const panel = app && app.shell.currentWidget; const c = panel && panel.context; const s = c && c.sessionContext;
  return !!(s && c.isReady && s.isReady && s.session && s.session.kernel && s.session.kernel.connectionStatus === 'connected'
    && s.session.kernel.status === 'idle');
}"""


def notebook(*cells: str) -> Any:
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(c) for c in cells])
    made.metadata["kernelspec"] = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return made


class Lab:
    """`with Lab(folder) as lab: page = lab.open(chromium, "x.ipynb")`; Notebook 7, which the same server has, with `at="notebooks"`."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder / "notebooks", folder / "home"
        self.folder.mkdir(parents=True)
        names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "JUPYTERLAB_SETTINGS_DIR",
                 "JUPYTERLAB_WORKSPACES_DIR")  # fmt: skip
        own = {n: str(self.home / n.lower()) for n in names}
        config = Path(own["JUPYTER_CONFIG_DIR"])
        config.mkdir(parents=True)
        (config / "jupyter_lab_config.py").write_text("c.LabApp.expose_app_in_browser = True\n")
        (config / "jupyter_notebook_config.py").write_text("c.JupyterNotebookApp.expose_app_in_browser = True\n")
        settings = Path(own["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab" / "apputils-extension"
        settings.mkdir(parents=True)
        (settings / "notification.jupyterlab-settings").write_text('{"checkForUpdates": false, "fetchNews": "false"}')
        self.port = next(p for p in range(18890, 19890) if free(p))
        self.environment = {**os.environ, **own, "JUPYTER_TOKEN": TOKEN}
        self.faults: list[str] = []
        self.pages: list[Any] = []

    def __enter__(self) -> Lab:
        self.log = open(self.home / "log", "w")
        words = command(self.folder, self.port, browser=False)
        self.server = subprocess.Popen(words, env=self.environment, stdout=self.log, stderr=self.log)
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/api?token={TOKEN}", timeout=2)
                return self
            except OSError:
                assert self.server.poll() is None, (self.home / "log").read_text()
                time.sleep(0.2)
        raise AssertionError((self.home / "log").read_text())

    def __exit__(self, *error: object) -> None:
        self.server.terminate()
        self.server.wait(20)
        self.log.close()

    def save(self, name: str, made: Any) -> None:
        nbformat.write(made, self.folder / name)

    def open(self, chromium: Any, name: str, at: str = "lab/tree") -> Any:
        page = new_page(chromium, 1280, 1600, offline=False)
        self.pages.append(page)
        page.on("pageerror", lambda e: self.faults.append(f"error: {e}"))
        page.on("request", self._local_only)
        page.goto(f"http://127.0.0.1:{self.port}/{at}/{name}?reset&token={TOKEN}")
        page.wait_for_function(READY, timeout=90_000)
        return page

    def _local_only(self, request: Any) -> None:
        if not request.url.startswith((f"http://127.0.0.1:{self.port}/", "data:", "blob:")):
            self.faults.append(f"request: {request.url}")

    def run_all(self, page: Any) -> None:
        """Run every cell and wait until the kernel has done them."""
        page.evaluate(
            "() => { window.__run = null; window.jupyterapp.commands.execute('notebook:run-all-cells')"
            ".then((r) => { window.__run = [r]; }); }"
        )
        page.wait_for_function("() => window.__run !== null", timeout=120_000)

    def anew(self) -> None:
        """Without the pages, kernels, files and faults that there were."""
        while self.pages:
            self.pages.pop().close()
        self.end_kernels()
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        self.faults.clear()

    def end_kernels(self) -> None:
        """As the server does it when it is started anew."""
        url = f"http://127.0.0.1:{self.port}/api/sessions"
        with urllib.request.urlopen(f"{url}?token={TOKEN}") as answer:
            sessions = json.load(answer)
        for session in sessions:
            request = urllib.request.Request(f"{url}/{session['id']}?token={TOKEN}", method="DELETE")
            urllib.request.urlopen(request).close()

    def python(self, page: Any, code: str) -> str:
        """What this code prints in the notebook's kernel."""
        return page.evaluate(
            """async (code) => {
              const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
              let said = ''; const future = kernel.requestExecute({ code });
              future.onIOPub = (m) => { said += m.content.text ?? (m.content.evalue ?? ''); };
              await future.done; return said;
            }""",
            code,
        ).strip()

    def dark(self, page: Any) -> None:
        page.evaluate("() => window.jupyterapp.commands.execute('apputils:change-theme', { theme: 'JupyterLab Dark' })")
        page.wait_for_selector("body[data-jp-theme-light=false]", state="attached")


def metadata(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())["metadata"]
