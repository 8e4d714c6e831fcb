"""The browser's half as one module: the files of `static/`, in order, without their imports of each other.

Each is a plain ES module, so that node can test it; joined they need neither a bundler nor a second request. Imports are
one line each, and no two files may declare the same name at the top: a test says so.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

STATIC = Path(__file__).parent / "static"
MODULES = (
    "colour", "wire", "state", "dom", "text", "map", "router_rows", "router", "expert_flow", "expert_matrix", "experts",
    "attention_maps", "attention_head", "attention", "prediction", "answers", "compare", "edit", "workbench",
)  # fmt: skip
_IMPORT = re.compile(r'^import \{[^}]*\} from "\./[a-z_]+\.js";\n', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(async )?function|const|class|let)", re.MULTILINE)


@cache
def joined(report: bool = False) -> str:
    """The files of the workbench as one module; with `report`, the report's opening too and no default export."""
    names = (*MODULES, "report") if report else MODULES
    parts = [(STATIC / f"{name}.js").read_text(encoding="utf-8") for name in names]
    made = "\n".join(_EXPORT.sub("", _IMPORT.sub("", part)) for part in parts)
    return made.replace("export default {", "const widget = {", 1) if report else made


@cache
def style() -> str:
    """The workbench's style sheet."""
    return (STATIC / "workbench.css").read_text(encoding="utf-8")
