"""`grokscope lab`: JupyterLab on a copy of the notebooks, with this environment's kernel."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import webbrowser
from contextlib import suppress
from importlib.resources import files
from pathlib import Path

from grokscope.disk.writing import write_whole

QUIET = (
    "--LabApp.extension_manager=readonly", "--LabApp.news_url=",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
)  # fmt: skip
"""JupyterLab asks the network for news and extensions otherwise."""


def notebooks() -> Path:
    """Where the notebooks lie: in the installed package, or beside it in a checkout."""
    packaged = Path(str(files("grokscope"))) / "data" / "notebooks"
    return packaged if packaged.is_dir() else Path(str(files("grokscope"))).parent / "notebooks"


def copy_notebooks(to: Path) -> list[str]:
    """Copy those that are not there yet, without their outputs, whose pictures would pass for widgets that do not answer; what
    the user has changed stays. Gives the names of the new ones.
    """
    source = notebooks()
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: wanted the notebooks, found none; install grokscope again")
    try:
        to.mkdir(parents=True, exist_ok=True)
        names = [p.name for p in sorted(source.iterdir()) if p.suffix in (".ipynb", ".md")]
        fresh = [name for name in names if not (to / name).exists()]
        for name in fresh:
            text = (source / name).read_text(encoding="utf-8")
            write_whole(to / name, (without_outputs(text) if name.endswith(".ipynb") else text).encode(), replace=True)
    except OSError as error:
        raise OSError(f"{to}: the notebooks could not be copied there ({error.strerror}); name another folder") from error
    if not os.access(to, os.W_OK):
        raise OSError(f"{to}: wanted a folder that notebooks can be saved in, got a read-only one; name another")
    return fresh


def without_outputs(notebook: str) -> str:
    """A notebook's file as it was before it was run."""
    read = json.loads(notebook)
    for cell in read["cells"]:
        if cell["cell_type"] == "code":
            cell |= {"outputs": [], "execution_count": None}
    return json.dumps(read, indent=1, ensure_ascii=False) + "\n"


def free(port: int) -> bool:
    """Whether a server can take this port of this machine."""
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def command(folder: Path, port: int, browser: bool) -> list[str]:
    """The command that serves `folder`, by this interpreter, whose kernel Jupyter then takes."""
    shown = [] if browser else ["--no-browser"]
    return [sys.executable, "-m", "jupyterlab", f"--notebook-dir={folder}", "--ip=127.0.0.1", f"--port={port}",
            "--ServerApp.port_retries=0", *shown, *QUIET, *(["--allow-root"] if _is_root() else [])]  # fmt: skip


def _is_root() -> bool:
    return hasattr(os, "geteuid") and os.geteuid() == 0


def open_lab(folder: Path, port: int, browser: bool = True) -> int:
    """Copy the notebooks to `folder`, say where they are, serve them until the user stops it; Jupyter's exit status."""
    if not free(port):
        raise OSError(f"port {port}: wanted a free one, something listens there; choose another with --port")
    fresh = copy_notebooks(folder)
    kept = len([p for p in folder.glob("*.ipynb") if p.name not in fresh])
    new = sum(name.endswith(".ipynb") for name in fresh)
    told = f"{new} new" + (f", {kept} kept as they were" if kept else "")
    print(f"notebooks in {folder.resolve()}: {told}; run a notebook from its top", flush=True)
    if browser:
        try:
            webbrowser.get()
        except webbrowser.Error:
            browser = False
            print("no browser on this machine: open the address below in one that can reach it", flush=True)
    return serve(command(folder.resolve(), port, browser))


def serve(command: list[str]) -> int:
    """Run a server until it ends, by Ctrl-C in the terminal (which it hears too) or by a SIGTERM to this process, which ends both;
    its exit status, 0 where it was ended so.
    """
    with subprocess.Popen(command) as server:

        def end(*_: object) -> None:
            server.terminate()
            raise KeyboardInterrupt

        before = signal.signal(signal.SIGTERM, end)
        try:
            return server.wait()
        except KeyboardInterrupt:
            with suppress(KeyboardInterrupt):  # a second Ctrl-C is the server's, which asks for it
                server.wait()
            return 0
        finally:
            signal.signal(signal.SIGTERM, before)
