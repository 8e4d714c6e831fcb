"""Text of strangers as a reader, a terminal and a page may have it: seen, and nothing else.

Whatever a file brings (a token, a name in a header, a label) goes through `visible` where people read it, through `html`
where a browser does. There is no second way.
"""

from __future__ import annotations

import base64
import hashlib
import unicodedata
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width">
<meta name="generator" content="GrokScope">
<title>{title}</title>
<style>{css}</style>
</head>
<body>
<main id="root"></main>
{data}
<script type="module">{js}</script>
</body>
</html>
"""
_NAMED = {"\n": "⏎", "\t": "⇥"}
_HIDDEN = {"Cc", "Cf", "Zl", "Zp", "Cs", "Co", "Cn"}


def visible(text: str) -> str:
    """`text` with nothing in it that a reader cannot see or that changes how the rest is shown.

    Newlines become ⏎, tabs ⇥; every other control, format, private or unassigned character (direction overrides, zero
    width, terminal escapes, lone surrogates) becomes its number, `\\u{202e}`. It still needs escaping where it goes into
    HTML or a terminal's markup.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(_NAMED.get(c) or (f"\\u{{{ord(c):x}}}" if unicodedata.category(c) in _HIDDEN else c) for c in text)


def visible_lines(text: str) -> str:
    """The same for a text of ours with something foreign in it: its own line ends stay."""
    return "\n".join(map(visible, text.split("\n")))


def listed(problems: Sequence[str], most: int = 40) -> str:
    """What is wrong, behind a colon: one on the same line, several a line each."""
    if len(problems) == 1:
        return f" {problems[0]}"
    rest = [f"and {len(problems) - most:,} more"] if len(problems) > most else []
    return "".join(f"\n  {line}" for line in [*problems[:most], *rest])


def told(value: Any, most: int = 80) -> str:
    """A value out of a file, for an error's words. Of what is nested only the kind: to write it out could take for ever."""
    if isinstance(value, str):
        return repr(value if len(value) <= most else value[:most] + "...")  # which writes out what cannot be seen
    if value is None or isinstance(value, bool | float):
        return repr(value)
    if isinstance(value, int):
        return str(value) if value.bit_length() < 128 else f"a number of {value.bit_length()} bits"
    if isinstance(value, tuple | list) and len(value) <= 8 and all(map(_is_plain, value)):
        return f"[{', '.join(map(told, value))}]"
    if isinstance(value, dict) and len(value) <= 8 and all(map(_is_plain, value.values())):
        return f"{{{', '.join(f'{told(k)}: {told(v)}' for k, v in value.items())}}}"
    return type(value).__name__


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | int | float)


def html(value: object) -> str:
    """Anything as text of a page: visible, in its own direction, and no markup."""
    text = escape(visible(str(value)))
    return text if text.isascii() else f"<bdi>{text}</bdi>"


def html_table(rows: Iterable[Iterable[object]], head: Iterable[object] = ()) -> str:
    """A table with every cell through `html`."""
    first = "".join(f"<th>{html(cell)}</th>" for cell in head)
    lines = "".join(f"<tr>{''.join(f'<td>{html(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>{f'<tr>{first}</tr>' if first else ''}{lines}</table>"


def html_block(*parts: str) -> str:
    """Parts of a notebook's output, which nobody shall take for formulas."""
    return f'<div class="mathjax_ignore tex2jax_ignore">{"".join(parts)}</div>'


def offline_page(title: str, css: str, js: str, data: str) -> str:
    """A page that stands alone: one style, one script, `data` in scripts that run nothing. Its policy lets that style and that
    script work, by their digests, and forbids every request and whatever else would run.
    """
    policy = f"default-src 'none'; script-src {_digest(js)}; style-src {_digest(css)}; base-uri 'none'; form-action 'none'"
    return PAGE.format(policy=escape(policy), title=escape(visible(title)), css=css, js=js, data=data)


def _digest(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
