"""A few mutants of every format; `python -m tests.fuzz` is the long form."""

from __future__ import annotations

import random
import subprocess
import sys

from tests.conftest import ROOT
from tests.fuzz import READERS, mutated


def test_damage_is_said_in_our_words_and_never_silent():
    command = [sys.executable, "-m", "tests.fuzz", "--mutants", "5", "--seed", "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(done.stdout.splitlines()) == len(READERS)


def test_what_is_bad_would_be_seen(tmp_path):
    """The command's own eyes: a reader of every kind that it must tell apart."""
    code = (
        "import os; from pathlib import Path; from tests.fuzz import *\n"
        "def eats(path): return b'x' * (3 << 29)\n"
        "def hangs(path):\n  while True: pass\n"
        "def dies(path): os.abort()\n"
        "def fails(path): raise KeyError(path)\n"
        "def mumbles(path): raise ValueError('no')\n"
        "def refuses(path): raise ValueError(f'{path}: wanted more')\n"
        "def escapes(path): raise ValueError(f'{path}: wanted \x1b[2J')\n"
        "for read in (eats, hangs, dies, fails, mumbles, refuses, escapes):\n"
        "  print(apart(lambda: looked_at(Format(Path, read), Path('x')), 3)[0], flush=True)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["memory", "hang", "crash", "foreign", "foreign", "clear", "foreign"], done.stderr


def test_mutants_differ_and_come_again():
    data = bytes(range(256)) * 8 + b" 17, 3.5"
    made = [mutated(data, random.Random(n)) for n in range(200)]
    assert made == [mutated(data, random.Random(n)) for n in range(200)]
    assert len(set(made)) > 150
