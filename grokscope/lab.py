"""`grokscope lab`: JupyterLab on a copy of the notebooks, with this environment's kernel."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import webbrowser
from importlib.resources import files
from pathlib import Path

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
    """Copy those that are not there yet; what the user has changed stays. Gives the names of the new ones."""
    source = notebooks()
    if not source.is_dir():
        raise FileNotFoundError(f"{source}: wanted the notebooks, found none; install grokscope again")
    try:
        (to / "pictures").mkdir(parents=True, exist_ok=True)
        names = [p.relative_to(source) for p in sorted(source.rglob("*")) if p.suffix in (".ipynb", ".md", ".png")]
        fresh = [name for name in names if len(name.parts) < 3 and not (to / name).exists()]
        for name in fresh:
            part = (to / name).with_name(f".{name.name}.{os.getpid()}.part")
            shutil.copyfile(source / name, part)
            part.replace(to / name)
    except OSError as error:
        raise OSError(f"{to}: the notebooks could not be copied there ({error.strerror}); name another folder") from error
    return [str(name) for name in fresh]


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
    print(f"notebooks in {folder.resolve()}: {new} new" + (f", {kept} kept as they were" if kept else ""), flush=True)
    if browser:
        try:
            webbrowser.get()
        except webbrowser.Error:
            browser = False
            print("no browser on this machine: open the address below in one that can reach it", flush=True)
    try:
        return subprocess.call(command(folder.resolve(), port, browser))
    except KeyboardInterrupt:
        return 0
