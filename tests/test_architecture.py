"""The design as a test: imports point one way, nothing happens at import, files stay short."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "grokscope"
RANKS = {
    "config": 0, "sites": 0, "prompt": 1, "corpus": 1, "transformer": 1, "checkpoints": 2, "trace": 2, "analysis": 3,
    "memory": 3, "source": 3, "sharding": 3, "placement": 3, "resuming": 3, "running": 4, "generation": 4, "scoring": 4,
    "sweeping": 4, "model": 4, "loading": 4, "converting": 4, "train": 5, "experiments": 5, "ray_sweeping": 5, "views": 5, "widgets": 6, "plots": 6, "cli": 7, "cli_sweep": 7, "cli_look": 7, "lab": 7,
    "__init__": 7,
}  # fmt: skip
FORBIDDEN = {"trace": {"jax"}, "views": {"jax", "anywidget"}, "config": {"jax", "numpy"}, "sites": {"jax", "numpy"}}
FILES = sorted(PACKAGE.rglob("*.py"))


def part(path: Path) -> str:
    relative = path.relative_to(PACKAGE)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether at run time): those under `if TYPE_CHECKING` are for readers of types."""
    found = []

    def visit(node: ast.AST, typing: bool) -> None:
        for child in ast.iter_child_nodes(node):
            quiet = typing or (isinstance(child, ast.If) and getattr(child.test, "id", "") == "TYPE_CHECKING")
            if isinstance(child, ast.Import):
                found.extend((a.name, not quiet) for a in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}: relative import"
                found.append((child.module or "", not quiet))
            visit(child, quiet)

    visit(ast.parse(path.read_text()), False)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path):
    for module, at_run_time in imports(path):
        if module.startswith("grokscope") and at_run_time and part(path) != "__init__":
            target = module.split(".")[1] if "." in module else "__init__"
            assert target in RANKS, f"{target}: give it a rank"
            assert RANKS[target] <= RANKS[part(path)], f"{path.name} (rank {RANKS[part(path)]}) imports {module}"
        top = module.split(".")[0]
        assert top not in FORBIDDEN.get(part(path), ()), f"{path} imports {top}"
        assert top not in ("torch", "transformers", "pickle", "flax", "haiku"), f"{path} imports {top}"


def test_no_checkpoint_format_knows_another():
    for name in ("grok1", "huggingface", "native"):
        others = {"grok1", "huggingface", "native"} - {name}
        known = {m for m, _ in imports(PACKAGE / "checkpoints" / f"{name}.py")}
        assert not {f"grokscope.checkpoints.{o}" for o in others} & known


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
        "import jax; import grokscope.model, grokscope.loading; "
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
