"""Ids of the hub: what is fetched, and what is said offline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from grokscope.checkpoints import huggingface
from tests.checkpoints.families import FOLDER as FAMILIES
from tests.checkpoints.hub import FOLDER, assert_same, ours
from tests.checkpoints.hub_server import hub


@pytest.mark.parametrize(
    ("text", "is_one"),
    [("mistralai/Mixtral-8x7B-v0.1", True), ("a/b_c", True), ("name", False), ("a/b/c", False), ("../x", False), ("/x", False),
     ("./x/y", False), ("a/..", False), ("https://x/y", False), ("a/b\n", False)],
)  # fmt: skip
def test_what_looks_like_a_hub_id(text, is_one):
    assert huggingface.is_hub_id(text) is is_one


def download(hub_id: str, home: Path, **environment: str) -> str:
    """What a fresh process says, for the hub's client reads its environment when it is imported."""
    code = (
        "import sys; from grokscope.checkpoints import CheckpointError, huggingface\n"
        "assert 'huggingface_hub' not in sys.modules\n"
        f"try: print(huggingface.download({hub_id!r}))\n"
        "except CheckpointError as error: print('CheckpointError', error)"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env=clean | {"HF_HOME": str(home)} | environment,
    )
    return done.stdout.rstrip("\n")


@pytest.mark.parametrize("environment", [{"HF_HUB_OFFLINE": "1"}, {"HF_ENDPOINT": "http://127.0.0.1:9"}])
def test_a_hub_id_that_cannot_be_reached_is_one_line(tmp_path, environment):
    said = download("owner/name", tmp_path, **environment)
    assert said.startswith(
        "CheckpointError owner/name: wanted a directory here or a model of the Hugging Face hub, got"
    )
    assert "hf download" in said
    assert "\n" not in said


def test_a_model_in_the_hubs_cache_is_found_offline(tmp_path):
    """The cache keeps links to blobs outside the model's directory."""
    cached = tmp_path / "hub" / "models--owner--name"
    snapshot = cached / "snapshots" / ("0" * 40)
    for folder in (snapshot, cached / "blobs", cached / "refs"):
        folder.mkdir(parents=True)
    (cached / "refs" / "main").write_text("0" * 40)
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(FOLDER / "grouped" / name, cached / "blobs" / name)
        (snapshot / name).symlink_to(Path("../../blobs") / name)
    assert Path(download("owner/name", tmp_path, HF_HUB_OFFLINE="1")) == snapshot
    with np.load(FOLDER / "grouped" / "expected.npz") as expected:
        assert_same(ours(snapshot), expected)


def test_what_is_fetched(monkeypatch, tmp_path):
    """No code, no pickles, no second copy of the weights: by the hub's own filter."""
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    listed = [
        "config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "tokenizer.model", "README.md",
        "modeling_x.py", "pytorch_model.bin", "original/model.safetensors", "metal/model.bin", "consolidated.00.pt", "consolidated.safetensors", "tokenizer.json", "x.pkl",
    ]  # fmt: skip
    fetched = []

    def snapshot(hub_id, **patterns):
        fetched.extend(filter_repo_objects(listed, **patterns))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    assert huggingface.download("owner/name") == tmp_path
    assert fetched == [*listed[:4], "tokenizer.json"]


@pytest.fixture
def repository(tmp_path):
    """A tiny Qwen3-MoE as the hub would have it, with all that must stay there."""
    folder = tmp_path / "repository"
    shutil.copytree(FAMILIES / "qwen3_moe" / "hub", folder)
    for name in ("modeling_x.py", "pytorch_model.bin", "x.gguf", "consolidated.safetensors", "original/model.safetensors", "metal/model.bin"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


def test_the_real_client_fetches_what_is_needed_once(tmp_path, repository):
    home = tmp_path / "home"
    with hub(repository) as (address, fetched):
        first = download("owner/tiny", home, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
        assert {f.split()[0] for f in fetched} - {""} == {"config.json", "model.safetensors", "chat_template.jinja"}, first
        fetched.clear()
        assert download("owner/tiny", home, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1") == first
        assert fetched == [], "a second time nothing is fetched"
    assert download("owner/tiny", home, HF_HUB_OFFLINE="1") == first
    assert str(home) in first
    assert ours(Path(first)).config.num_layers == 4


def test_a_broken_download_goes_on_where_it_was(tmp_path, repository):
    """The client writes in stretches of 10 MB: what it has of a file of 24 is not asked for again."""
    home, large = tmp_path / "home", bytes(range(256)) * 93_750
    (repository / "large.safetensors").write_bytes(large)
    with hub(repository, cut=15_000_000) as (address, fetched):
        for _ in range(3):
            said = download("owner/tiny", home, HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
            if not said.startswith("CheckpointError"):
                break
        assert any(f.startswith("large.safetensors from ") for f in fetched), fetched
    assert (Path(said) / "large.safetensors").read_bytes() == large


@pytest.mark.parametrize(("name", "said"), [("owner/gated", "behind a form.*HF_TOKEN"), ("owner/absent", "no such model, or it is private")])
def test_a_gated_and_a_missing_repository_are_one_line(tmp_path, repository, name, said):
    import re

    with hub(repository) as (address, _):
        line = download(name, tmp_path / "home", HF_ENDPOINT=address, HF_HUB_DISABLE_XET="1")
    assert line.startswith("CheckpointError owner/") and re.search(said, line) and "\n" not in line
