"""`opsin.NAME`: what is promised is there, documented, and the same for people, type checkers and packaging."""

from __future__ import annotations

import ast
import inspect
import tomllib
from pathlib import Path

import pytest

import opsin
from tests.structure.processes import python

ROOT = Path(__file__).parents[2]
LAZY = sorted(set(opsin.__all__) - {"__version__"})


def test_the_promised_names() -> None:
    assert opsin.__all__ == ["Bundle", "Run", "__version__", "compare", "load", "load_data", "train"]


@pytest.mark.parametrize("name", LAZY)
def test_each_name_is_there_and_documented(name: str) -> None:
    value = getattr(opsin, name)
    assert inspect.getdoc(value)
    assert f"{value.__module__}.".startswith(f"{opsin._HOMES[name]}.")
    assert vars(opsin)[name] is value  # found directly the next time


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(opsin.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    assert {alias.asname: node.module for node in imports for alias in node.names} == opsin._HOMES
    assert sorted(opsin._HOMES) == LAZY


def test_unknown_name_says_what_there_is() -> None:
    with pytest.raises(AttributeError, match=r"module 'opsin' has no attribute 'fit'\. Public names: .*train"):
        opsin.fit  # noqa: B018


def test_dir_lists_names_that_are_not_loaded_yet() -> None:
    assert set(opsin.__all__) <= set(dir(opsin))
    assert "Bundle" in python("-c", "import opsin; print(dir(opsin))").stdout


def test_one_version() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert opsin.__version__ == project["version"]
