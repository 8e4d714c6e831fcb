"""Pages lead somewhere, name what is there, and every question has a place where it is answered."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib

import pytest
import yaml

import grokscope as gs
from tests import site as docs
from tests.conftest import ROOT

TOP = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PUBLIC = re.compile(r"\bgs\.([A-Za-z_0-9]+(?:\.[A-Za-z_0-9]+)?)")


@pytest.mark.parametrize("path", [*docs.sources(), *TOP], ids=lambda p: p.name)
def test_links_lead_somewhere(path):
    assert docs.dead_links(path) == []


def test_a_dead_link_is_seen(tmp_path):
    page = tmp_path / "a.md"
    page.write_text("[a](a.md) [b](b.md#x) [c](https://x.org) [d](#here) `[e](e.md)`")
    assert docs.dead_links(page) == ["b.md"]


@pytest.mark.parametrize("path", [*docs.sources(), *TOP], ids=lambda p: p.name)
def test_public_names_that_pages_use_are_there(path):
    for name in set(PUBLIC.findall(path.read_text(encoding="utf-8"))):
        value = gs
        for part in name.split("."):
            value = getattr(value, part, None) if part not in ("NAME",) else value
            assert value is not None, f"{path.name}: gs.{name}"


def test_every_page_is_in_the_index():
    index = (ROOT / "notebooks" / "index.md").read_text()
    missing = [p.name for p in docs.sources() if p.suffix == ".md" and p.name != "index.md" and p.name not in index]
    assert missing == [], "name them in notebooks/index.md, with what one reads them for"


def test_links_of_the_site_are_those_of_the_pages():
    assert docs._as_site('<a href="tables.md#x">') == '<a href="tables.html#x">'
    assert docs._as_site('<a href="00_tour.ipynb">') == '<a href="00_tour.html">'
    assert docs._as_site('<a href="../tests/x.py">a test</a>') == "a test"
    assert docs._as_site('<a href="https://a.org/b.md">') == '<a href="https://a.org/b.md">'


def test_version_citation_and_changelog_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert gs.__version__ == version == str(yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"])
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()
    said = subprocess.run([sys.executable, "-m", "grokscope.cli", "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == f"grokscope {version}\n"
