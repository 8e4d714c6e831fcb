"""pyproject.toml, environment.yml, constraints.txt and the README agree."""

from __future__ import annotations

import re
import tomllib

import yaml

from tests.conftest import ROOT

DESIGN = {"jax", "jaxlib", "numpy", "sentencepiece", "jupyterlab", "ipywidgets", "plotly", "pandas"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def names(requirements) -> set[str]:
    return {re.split(r"[\[<>=~; ]", r)[0].lower().replace("_", "-") for r in requirements}


def test_the_eight_packages_of_the_design_are_dependencies():
    assert names(PROJECT["dependencies"]) >= DESIGN


def test_no_torch_and_no_transformers_at_run_time():
    assert not names(PROJECT["dependencies"]) & {"torch", "transformers", "flax", "dm-haiku"}


def test_every_dependency_is_bounded_below_and_pinned():
    everything = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["test"]]
    assert all(">=" in r for r in everything)
    pins = names((ROOT / "constraints.txt").read_text().split("\n"))
    assert names(everything) <= pins
    assert "://" not in (ROOT / "constraints.txt").read_text()
    assert not (ROOT / "uv.lock").exists() or "uv.lock" in (ROOT / ".gitignore").read_text()


def test_environment_yml_is_python_pip_and_the_project():
    stored = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, packages = stored["dependencies"]
    assert pip == "pip"
    assert packages == {"pip": ["-e .[test]"]}
    version = tuple(int(n) for n in python.removeprefix("python=").split("."))
    assert (3, 11) <= version <= (3, 13)
    assert PROJECT["requires-python"] == ">=3.11,<3.14"


def test_the_readme_shows_the_commands_that_are_there():
    readme = (ROOT / "README.md").read_text()
    makefile = (ROOT / "Makefile").read_text()
    for target in ("demo", "test"):
        assert f"make {target}" in readme
        assert f"\n{target}:" in makefile
    assert readme.index("make demo") < readme.index("make test") < readme.index("uv run") < readme.index("pip install")
    assert "checked for consistency, not solved" in readme
    assert "make test" in (ROOT / ".ci" / "run").read_text()
