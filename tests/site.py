"""The site: the pages of `notebooks/`, the notebooks as they are stored, and the reference of the API from the docstrings.

`make docs`, or `python -m tests.site [FOLDER]`; what it writes opens from disk. A warning or a dead link ends it.
"""

from __future__ import annotations

import re
import shutil
import sys
import warnings
from html import escape
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "notebooks"
LINK = re.compile(r"\]\(([^)\s]+)\)")
STYLE = """
:root { color-scheme: light dark }
body { max-width: 900px; margin: 0 auto; padding: 12px 16px 60px; font: 16px/1.5 system-ui, sans-serif; background: Canvas; color: CanvasText }
nav { border-bottom: 1px solid #8886; padding-bottom: 8px }
nav a { margin-right: 14px }
table { border-collapse: collapse }
td, th { border: 1px solid #8884; padding: 3px 8px; text-align: left; vertical-align: top }
pre { background: #8881; padding: 8px 10px; overflow-x: auto }
code { font-size: 0.9em }
img { max-width: 100% }
.prompt, .anchor-link, .jp-InputPrompt, .jp-OutputPrompt { display: none }
"""
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>{style}</style></head>
<body><nav><a href="index.html">GrokScope</a><a href="00_tour.html">Tour</a><a href="agents.html">The API on one page</a>
<a href="api/grokscope.html">Reference</a></nav>
{body}
</body></html>
"""


def sources() -> list[Path]:
    """The pages and notebooks, by name."""
    return sorted(p for p in PAGES.iterdir() if p.suffix in (".md", ".ipynb"))


def text_of(path: Path) -> str:
    """The Markdown of a page, or of a notebook's cells of text."""
    if path.suffix == ".md":
        return path.read_text(encoding="utf-8")
    import json

    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


def dead_links(path: Path) -> list[str]:
    """The links of a page that lead to no file beside it; those to the web are not followed."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", text_of(path), flags=re.DOTALL)
    found = [link.partition("#")[0] for link in LINK.findall(text) if not re.match(r"[a-z]+:|#", link)]
    return [link for link in found if not (path.parent / link).exists()]


def _as_site(html: str) -> str:
    """Links to pages and notebooks become links to what is made of them; to a file elsewhere in the checkout its
    words alone, since the site stands without one.
    """
    html = re.sub(r'href="(?![a-z]+:)([^"#/]+)\.(?:md|ipynb)(#[^"]*)?"', r'href="\1.html\2"', html)
    html = re.sub(r'href="\.\./README\.md(#[^"]*)?"', 'href="index.html"', html)
    return re.sub(r'<a href="\.\./[^"]*">(.*?)</a>', r"\1", html)


def _write(path: Path, into: Path) -> None:
    if path.suffix == ".md":
        from markdown_it import MarkdownIt

        body = MarkdownIt("commonmark", {"html": False}).enable("table").render(path.read_text(encoding="utf-8"))
    else:
        from nbconvert import HTMLExporter

        body, _ = HTMLExporter(template_name="basic").from_filename(str(path))
    title = text_of(path).lstrip().split("\n")[0].lstrip("# ")
    page = PAGE.format(title=escape(title), style=STYLE, body=_as_site(body))
    (into / f"{path.stem}.html").write_text(page, encoding="utf-8")


def _reference(into: Path) -> None:
    import pdoc

    import grokscope

    for name in grokscope.__all__:  # pdoc takes what a module holds, not what it would import when asked
        setattr(grokscope, name, getattr(grokscope, name))
    pdoc.render.configure(docformat="markdown", show_source=False, search=False)
    deeper = [m for m in grokscope._MODULES.values() if m.count(".") > 1]  # the others come with the package
    pdoc.pdoc("grokscope", *deeper, output_directory=into / "api")


def build(into: Path) -> None:
    """Write the whole site anew."""
    if dead := [f"{p.name}: {link}" for p in sources() for link in dead_links(p)]:
        raise SystemExit("docs: wanted links that lead somewhere, got\n  " + "\n  ".join(dead))
    shutil.rmtree(into, ignore_errors=True)
    into.mkdir(parents=True)
    shutil.copytree(PAGES / "pictures", into / "pictures")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of the libraries that build
        warnings.filterwarnings("ignore", message="Error parsing type annotation")  # names that are imported for types alone
        for path in sources():
            _write(path, into)
        _reference(into)
    inside = [p for p in into.glob("*.html")]
    for page in inside:
        for link in re.findall(r'href="([^"#:]+)(?:#[^"]*)?"', page.read_text(encoding="utf-8")):
            if not (into / link).exists():
                raise SystemExit(f"docs: {page.name}: wanted links that lead somewhere, got {link}")
    reference = len(list((into / "api").rglob("*.html")))
    print(f"docs: {len(inside)} pages and {reference} of reference in {into}; open {into / 'index.html'}")


if __name__ == "__main__":
    build(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "site")
