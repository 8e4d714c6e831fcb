"""A sweep on a cluster of this machine: the bytes of one process, also when a task dies in the middle."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from importlib.util import find_spec

import pytest

from grokscope.model import on_ray as ray_sweeping
from grokscope.model.on_ray import sweep_on_ray
from grokscope.sweeps.corpus import Document
from tests.conftest import ROOT

TEXTS = [Document(f"{'the moon, 月 ' * (1 + n % 5)}{n}", "even" if n % 2 == 0 else "odd") for n in range(23)]


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed: pip install 'grokscope[ray]' (76 MB)")


@pytest.fixture(scope="module")
def cluster():
    """Two processors of this machine."""
    with ray_sweeping.cluster(num_cpus=2) as ray:
        yield ray


@pytest.fixture(scope="module")
def whole(pocket, tmp_path_factory):
    return written(pocket.sweep(TEXTS, progress=False), tmp_path_factory.mktemp("whole"))


def written(counters, folder) -> bytes:
    counters.save(folder / "x.npz", overwrite=True)
    return (folder / "x.npz").read_bytes()


@pytest.mark.slow
@needs_ray
def test_a_task_that_is_killed_once_is_taken_up_again(cluster, whole, tmp_path):
    marker, work = tmp_path / "killed", tmp_path / "work"

    class Deadly:
        """The texts; one process, when both have saved some and it goes on, dies."""

        def __iter__(self):
            from grokscope.sweeps import sweep as sweeping

            sweeping.WINDOW = 0.05
            for n, text in enumerate(TEXTS):
                saved = sorted(p.parent.name for p in work.glob("*/counters-*.npz"))
                if n >= 17 and len(saved) == 2 and not marker.exists():
                    marker.write_text(f"{os.getpid()} {' '.join(saved)}")
                    os.kill(os.getpid(), signal.SIGKILL)
                yield text

        def __str__(self):
            return "deadly"

    counters = sweep_on_ray("pocket", Deadly(), shards=2, resume=work, dtype="float32")
    assert marker.exists(), "one was killed, after it had saved something"
    assert written(counters, tmp_path) == whole


@pytest.mark.slow
@needs_ray
def test_more_shards_than_documents(cluster, pocket, tmp_path):
    found = sweep_on_ray("pocket", TEXTS[:1], shards=3, dtype="float32")
    assert written(found, tmp_path) == written(pocket.sweep(TEXTS[:1], progress=False), tmp_path)


@pytest.mark.slow
@needs_ray
def test_an_error_of_a_task_is_the_error(cluster, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n{"words": 1}\n')
    with pytest.raises(ValueError, match="line 2") as caught:
        sweep_on_ray("pocket", tmp_path / "a.jsonl", shards=2)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="at least one document"):
        sweep_on_ray("pocket", [], shards=1)


@pytest.mark.slow
@needs_ray
def test_a_cluster_of_this_machine_keeps_to_itself(cluster):
    """It listens on the loopback, reports nothing, and leaves the environment as it was."""
    assert "RAY_USAGE_STATS_ENABLED" not in os.environ and os.environ.get("http_proxy") != ray_sweeping.PROXIES["http_proxy"]
    assert [node["NodeManagerAddress"] for node in cluster.nodes()] == ["127.0.0.1"]

    def inside() -> dict[str, str | None]:
        return {name: os.environ.get(name) for name in ("RAY_USAGE_STATS_ENABLED", "http_proxy")}

    assert cluster.get(cluster.remote(inside).remote()) == {
        "RAY_USAGE_STATS_ENABLED": "0",
        "http_proxy": os.environ.get("http_proxy", ""),
    }


@pytest.mark.parametrize(
    ("source", "shards", "error", "message"),
    [
        ("nowhere.jsonl", 2, FileNotFoundError, "put a text itself in a list"),
        ("-", 2, ValueError, "write it to a file"),
        (["a"], 0, ValueError, "how many tasks"),
    ],
)
def test_mistakes_are_told_before_anything_starts(source, shards, error, message):
    with pytest.raises(error, match=message):
        sweep_on_ray("pocket", source, shards=shards)


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"pip install 'grokscope\[ray\]'"):
        sweep_on_ray("pocket", ["a"], shards=2)


def test_the_shell_refuses_a_shard_of_a_cluster(tmp_path):
    command = [sys.executable, "-m", "grokscope.cli", "sweep", "x", "-o", str(tmp_path / "x.npz"), "--shard", "1/2", "--ray", "2"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--ray" in done.stderr


@pytest.mark.slow
@needs_ray
def test_from_the_shell_with_a_cluster_of_its_own(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "the moon"}\n{"text": "la lune"}\n{"text": "der Mond"}\n')
    command = [sys.executable, "-m", "grokscope.cli", "sweep", str(tmp_path / "a.jsonl"), "--ray", "2", "-o", str(tmp_path / "r.npz")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    plain = [*(c for c in command[:-1] if c not in ("--ray", "2")), str(tmp_path / "p.npz")]
    subprocess.run(plain, cwd=ROOT, check=True, capture_output=True)
    assert (tmp_path / "r.npz").read_bytes() == (tmp_path / "p.npz").read_bytes()
