"""The wheel in a clean environment: built, installed, and the demo, the tour and the lab run from there.

`python -m tests.wheel [--python 3.12] [--oldest]`; needs uv and the package index, and takes some minutes. --oldest: each
dependency at the lowest version that pyproject.toml allows.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
TOUR = "from grokscope.cli.lab import copy_notebooks; import pathlib; print(*copy_notebooks(pathlib.Path('notebooks')))"


def done(*command: str, cwd: Path, **env: str) -> str:
    """What a command prints; its errors are shown where it fails."""
    ran = subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {ran.returncode}\n{ran.stdout[-2000:]}\n{ran.stderr[-4000:]}")
    return ran.stdout


def built(into: Path) -> Path:
    """The wheel, by the build that pyproject.toml asks for."""
    done("uv", "build", "--quiet", "--out-dir", str(into), cwd=ROOT)
    (wheel,) = into.glob("*.whl")
    return wheel


def answer(url: str) -> str:
    """What a server says that has said where it is, and may not listen there yet."""
    for wait in (1, 2, 4, 8, 16, 32):
        try:
            return urllib.request.urlopen(url, timeout=60).read().decode()
        except urllib.error.URLError:
            time.sleep(wait)
    raise SystemExit(f"{url}: wanted an answer within a minute, got none")


def lab_answers(command: str, cwd: Path) -> None:
    """Whether `grokscope lab` serves its page and lists the tour."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    lab = subprocess.Popen(
        [command, "lab", "-d", "lab", "--port", str(port), "--no-browser"], cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        for line in lab.stdout:
            if "token=" in line:
                token = line.split("token=")[1].split()[0]
                break
        else:
            raise SystemExit("lab: ended before it served anything")
        listed = answer(f"http://127.0.0.1:{port}/api/contents?token={token}")
        assert "00_tour.ipynb" in listed, listed[:500]
    finally:
        os.killpg(lab.pid, signal.SIGTERM)  # the server too, which `grokscope lab` waits for
        lab.wait(30)


def tried(python: str, oldest: bool, wheel: Path, folder: Path) -> None:
    """Install into a clean environment and run demo, tour and lab there."""
    env = folder / "env"
    done("uv", "venv", "--quiet", "--python", python, str(env), cwd=folder)
    lowest = ["--resolution", "lowest-direct"] if oldest else []
    done("uv", "pip", "install", "--quiet", "--python", str(env / "bin" / "python"), *lowest, str(wheel), cwd=folder)
    here = {"JAX_PLATFORMS": "cpu", "HOME": str(folder), "PYTHONPATH": "", "JUPYTER_PLATFORM_DIRS": "1"}
    command = str(env / "bin" / "grokscope")
    start = time.perf_counter()
    print(done(command, "--version", cwd=folder, **here).strip(), "on Python", python, "oldest" if oldest else "newest")
    assert "BOS" in done(command, "trace", "The moon is bright.", cwd=folder, **here)
    assert "00_tour.ipynb" in done(str(env / "bin" / "python"), "-c", TOUR, cwd=folder, **here)
    tour = str(folder / "notebooks" / "00_tour.ipynb")
    run = [str(env / "bin" / "jupyter"), "nbconvert", "--to", "notebook", "--execute", "--inplace", tour]
    done(*run, cwd=folder, **here, PATH=f"{env / 'bin'}:{os.environ['PATH']}")
    lab_answers(command, folder)
    print(f"demo, tour and lab ran, {time.perf_counter() - start:.0f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=f"{sys.version_info.major}.{sys.version_info.minor}")
    parser.add_argument("--oldest", action="store_true")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        wheel = built(Path(folder) / "dist")
        inside = zipfile.ZipFile(wheel).namelist()
        notebooks = sum(n.endswith(".ipynb") for n in inside)
        print(f"{wheel.name}: {wheel.stat().st_size / 1e6:.1f} MB, {len(inside)} files, {notebooks} notebooks")
        assert any("data/pocket/layer-000" in n for n in inside) and notebooks
        tried(asked.python, asked.oldest, wheel, Path(folder))


if __name__ == "__main__":
    main()
