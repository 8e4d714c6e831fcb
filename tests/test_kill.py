"""A few kills of all that writes; `python -m tests.kill` is the long form."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.conftest import ROOT, in_a_hurry


@pytest.mark.parametrize(
    ("work", "kills"),
    [
        (["convert", "save", "counters", "csv", "parquet"], 5),
        pytest.param(["sweep", "train"], 2, marks=pytest.mark.slow),
    ],
)
def test_nothing_is_lost(work, kills):
    command = [sys.executable, "-m", "tests.kill", *work, "--kills", str(kills)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=in_a_hurry())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" 0 wrong") == len(work)
