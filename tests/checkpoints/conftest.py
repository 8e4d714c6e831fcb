"""A copy of a golden checkpoint, to be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.checkpoints.hub import FOLDER


@pytest.fixture
def copy(tmp_path) -> Path:
    return Path(shutil.copytree(FOLDER / "grouped", tmp_path / "m"))
