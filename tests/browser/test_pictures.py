"""The README's pictures are of this version."""

from __future__ import annotations

from tests.browser.pictures import FOLDER, MADE_FROM, drawn_by
from tests.conftest import ROOT


def test_what_draws_the_panels_is_what_drew_the_pictures():
    assert MADE_FROM.read_text().strip() == drawn_by(), "scripts or styles changed: python -m tests.browser.pictures, then look at them"


def test_each_picture_is_shown():
    readme = (ROOT / "README.md").read_text()
    assert all(f"notebooks/pictures/{picture.name}" in readme for picture in FOLDER.glob("*.png"))
