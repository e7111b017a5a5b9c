"""The documents say what the program is."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def _generator():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(("name", "make"), [("cli.md", "describe_commands"), ("settings.md", "describe_settings")])
def test_generated_documents_are_fresh(name, make):
    """docs/cli.md and docs/settings.md are what docs/generate.py writes now."""
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert written == getattr(_generator(), make)(), "Run: python docs/generate.py"


def test_first_code_of_the_readme_comes_early():
    """The README shows its first command by line 25."""
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert next(i for i, line in enumerate(lines, 1) if line.startswith("```")) <= 25


@pytest.mark.parametrize("name", ["README.md", "README.zh-CN.md", "docs/architecture.md"])
def test_links_lead_somewhere(name):
    """Every relative link of a document leads to a file that exists."""
    document = ROOT / name
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []


def test_the_file_map_names_every_module():
    """docs/architecture.md names every module of the package."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    modules = {path.stem for path in (ROOT / "src" / "linnaeus").rglob("*.py")} - {"__init__", "__main__"}
    assert [name for name in sorted(modules) if not re.search(rf"\b{name}\b", text)] == []
