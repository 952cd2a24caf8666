"""Who may import whom, and what an import costs."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import opsin
from tests.structure.processes import SLACK, cheapest, python

ROOT = Path(__file__).parents[2]
SOURCE = Path(opsin.__file__).parent
HEAVY = ("torch", "torchvision", "timm", "numpy", "pydantic", "matplotlib", "PIL", "rich")


def loaded_after(code: str) -> set[str]:
    """Names of the heavy packages that some code loads, from a new process."""
    report = f"import sys\n{code}\nprint('\\n' + ' '.join(m for m in {HEAVY} if m in sys.modules))"
    return set(python("-c", report).stdout.splitlines()[-1].split())


def test_rooms_import_only_what_is_below_them() -> None:
    # Everything that .importlinter says: layers, no cycles, what the engine knows, siblings.
    config = str(ROOT / ".importlinter")
    code = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(sys.argv[1], no_cache=True))"
    done = python("-c", code, config, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_import_opsin_loads_nothing_heavy() -> None:
    assert loaded_after("import opsin") == set()


def test_import_opsin_is_quick() -> None:
    code = "import time; start = time.process_time(); import opsin; print(time.process_time() - start)"
    best = min(float(python("-c", code).stdout) for _ in range(5))
    assert best <= 0.1 * SLACK, f"`import opsin` takes {best:.3f} s"


def test_help_loads_nothing_heavy() -> None:
    assert loaded_after("from opsin.cli import main; assert main(['--help']) == 0") == set()


def test_help_is_quick() -> None:
    best = cheapest("-m", "opsin", "--help")
    assert best <= 0.3 * SLACK, f"`opsin --help` takes {best:.3f} s"


def test_verbs_import_torch_only_when_they_run() -> None:
    code = "from opsin import cli\nfor verb in cli.verbs().values(): cli.load(verb)"
    assert not loaded_after(code) & {"torch", "torchvision", "timm"}


def registries() -> list[tuple[str, str]]:
    """(kind, package) of every `Registry("kind", "package")` in the source."""
    found = []
    for path in SOURCE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Registry":
                kind, package = (ast.literal_eval(argument) for argument in node.args[:2])
                found.append((kind, package))
    return sorted(found)


def test_there_are_registries() -> None:
    assert ("task", "opsin.tasks") in registries()


@pytest.mark.parametrize(("kind", "package"), registries())
def test_listing_a_registry_loads_no_torch(kind: str, package: str) -> None:
    code = f"from opsin.registry import Registry; list(Registry({kind!r}, {package!r}))"
    assert not loaded_after(code) & {"torch", "torchvision", "timm"}


@pytest.mark.parametrize(("kind", "package"), registries())
def test_every_registered_module_can_be_imported(kind: str, package: str) -> None:
    # In a process of its own, so that modules that only work after another one was imported are found out.
    code = (
        "from opsin.registry import Registry\n"
        f"registry = Registry({kind!r}, {package!r})\n"
        "for name in registry: registry.module(name)"
    )
    python("-c", code)


def test_no_file_is_named_for_nothing() -> None:
    vague = {"utils.py", "util.py", "helpers.py", "helper.py", "common.py", "misc.py"}
    assert [path for path in SOURCE.rglob("*.py") if path.name in vague] == []


def test_every_package_is_a_package() -> None:
    # A folder without __init__.py is importable all the same, but neither installed nor seen by import-linter.
    folders = {path.parent for path in SOURCE.rglob("*.py")}
    assert [folder for folder in sorted(folders) if not (folder / "__init__.py").is_file()] == []
