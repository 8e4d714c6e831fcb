"""The design as a test: imports point one way, nothing happens at import, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "grokscope"
ORDER = (
    ("harmless", "disk", "fields", "versions", "router_config", "block_config", "config", "presets", "sites", "arguments"), ("prompt", "text", "transformer"), ("checkpoints", "trace", "recordings"), ("devices", "counters", "activations"),
    ("running", "analysis", "metrics"), ("tables",), ("sweeps",), ("atlas",), ("model",), ("experiments", "train"), ("sae", "steering"), ("plots", "views"),
    ("widgets",), ("cli", "__init__"),
)  # fmt: skip
"""What lies at the top of the package, from the ground up: imports point down, or to a neighbour that does not point back."""
RANKS = {name: rank for rank, names in enumerate(ORDER) for name in names}
FORBIDDEN = {
    "harmless": {"jax", "numpy"}, "fields": {"jax", "numpy"}, "arguments": {"jax", "numpy"}, "disk": {"jax"}, "config": {"jax", "numpy"}, "presets": {"jax", "numpy"}, "router_config": {"jax", "numpy"}, "block_config": {"jax", "numpy"}, "sites": {"jax", "numpy"}, "trace": {"jax"}, "recordings": {"jax"}, "counters": {"jax"}, "activations": {"jax"},
    "views": {"jax", "anywidget"},
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def module(path: Path) -> str:
    return ".".join(("grokscope", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")


MODULES = {module(path): path for path in FILES}


def imports(path: Path) -> set[str]:
    """The modules that a file names, at run time or for types; of ours the file, also where a folder is asked for it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0 and node.module, f"{path}: relative import"
            full = {f"{node.module}.{a.name}" for a in node.names}
            found |= {name if name in MODULES else node.module for name in full}
    return found


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """The sets of names that reach each other."""
    reached = {name: set(targets) & set(graph) for name, targets in graph.items()}
    for via in graph:
        for targets in reached.values():
            if via in targets:
                targets |= reached[via]
    return sorted({tuple(sorted(b for b in reached[a] if a in reached[b])) for a in graph if a in reached[a]})


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for name in imports(path):
        if name in MODULES and part(path) != "__init__":
            target = part(MODULES[name])
            assert target in RANKS, f"{target}: give it a rank"
            assert RANKS[target] <= RANKS[part(path)], f"{path} (rank {RANKS[part(path)]}) imports {name}"
        top = name.split(".")[0]
        assert top not in FORBIDDEN.get(part(path), ()), f"{path} imports {top}"
        assert top not in ("torch", "transformers", "pickle", "flax", "haiku"), f"{path} imports {top}"


def test_no_two_files_and_no_two_folders_import_each_other():
    graph = {name: imports(path) for name, path in MODULES.items() if name != "grokscope"}
    assert circles(graph) == []
    folders: dict[str, set[str]] = {}
    for name, targets in graph.items():
        mine = part(MODULES[name])
        folders.setdefault(mine, set()).update(part(MODULES[t]) for t in targets if t in graph and part(MODULES[t]) != mine)
    assert circles(folders) == []
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [("a", "b", "c")]


def test_every_folder_says_what_lives_there():
    for folder in {path.parent for path in FILES} - {PACKAGE}:
        told = ast.get_docstring(ast.parse((folder / "__init__.py").read_text()))
        assert told and "May import" in told and ".py" in told, folder


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 250
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "a file says what it is for"
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert node.end_lineno - node.lineno <= 60, node.name


def test_nothing_happens_at_import():
    code = (
        "import sys, threading; before = set(sys.modules); import grokscope; "
        "assert 'jax' not in sys.modules and 'pandas' not in sys.modules, 'heavy'; "
        "import jax; import grokscope.model.model, grokscope.model.loading; "
        "assert not jax._src.xla_bridge._backends, 'a device was touched'; "
        "assert jax.config.jax_compilation_cache_dir is None; "
        "assert not [t for t in threading.enumerate() if t is not threading.main_thread()]"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent"},
    )
    assert done.returncode == 0, done.stderr


def test_public_names_are_there_and_documented():
    import grokscope as gs

    for name in gs.__all__:
        value = getattr(gs, name)
        assert value.__doc__ or not callable(value), name
    with pytest.raises(AttributeError, match="it has"):
        _ = gs.nonsense
