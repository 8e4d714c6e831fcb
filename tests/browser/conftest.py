"""One browser for the tests of a file; they are skipped where there is none."""

from __future__ import annotations

import pytest

from tests.browser.host import browser


@pytest.fixture(scope="module")
def chromium():
    with browser() as made:
        yield made
