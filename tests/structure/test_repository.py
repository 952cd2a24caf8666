"""The repository itself: nothing large, nothing forgotten, every page there, every dependency pinned."""

from __future__ import annotations

import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
LIMIT = 2**20


def tracked() -> list[Path]:
    """Files that git knows, or would add; an unpacked archive has no git and is taken as it is."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        names = subprocess.run(listing, cwd=ROOT, capture_output=True, check=True, text=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    return [path for name in names if name and (path := ROOT / name).is_file()]


def text_files() -> Iterator[tuple[Path, str]]:
    for path in tracked():
        if path.suffix in {".py", ".md", ".toml", ".yml", ".txt", ".json", ""}:
            yield path, path.read_text(encoding="utf-8", errors="replace")


def pages(entries: list[object]) -> Iterator[str]:
    for entry in entries:
        for value in entry.values() if isinstance(entry, dict) else [entry]:
            yield from pages(value) if isinstance(value, list) else [str(value)]


def test_no_large_file() -> None:
    assert [(path, path.stat().st_size) for path in tracked() if path.stat().st_size > LIMIT] == []


def test_nothing_is_left_to_do_in_the_source() -> None:
    left = re.compile(r"\b(TODO|FIXME|XXX)\b")
    assert [path for path in (ROOT / "src").rglob("*.py") if left.search(path.read_text(encoding="utf-8"))] == []


def test_license_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text


def test_every_page_of_the_documentation_exists() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    missing = [page for page in pages(config["nav"]) if not (ROOT / "docs" / page).is_file()]
    assert missing == []


def test_links_between_pages_lead_somewhere() -> None:
    broken = []
    for path, text in text_files():
        if path.suffix != ".md":
            continue
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                broken.append(f"{path.relative_to(ROOT)}: {target}")
    assert broken == []


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def requirements() -> list[Requirement]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    tested = [*project["dependencies"], *extras["export"], *extras["dev"]]
    return [Requirement(text) for text in tested]


@pytest.mark.parametrize("requirement", requirements(), ids=lambda requirement: requirement.name)
def test_every_dependency_is_pinned_and_explained(requirement: Requirement) -> None:
    version = pinned().get(requirement.name.lower())
    assert version is not None, f"{requirement.name} is not in constraints.txt"
    assert requirement.specifier.contains(version)
    explained = (ROOT / "docs" / "dependencies.md").read_text(encoding="utf-8")
    assert f"| {requirement.name} |" in explained, f"docs/dependencies.md does not explain {requirement.name}"


def test_the_package_uses_what_it_requires() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = {"pillow": "PIL", "scikit-learn": "sklearn", "huggingface-hub": "huggingface_hub", "pyyaml": "yaml"}
    source = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    unused = {
        name
        for name in (Requirement(text).name for text in project["dependencies"])
        if not re.search(rf"(^\s*(import|from) |import_module\(\"){named.get(name, name)}\b", source, re.MULTILINE)
    }
    assert unused == set()


def test_an_extra_installs_something_and_messages_name_one_that_is_there() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert [name for name, packages in extras.items() if not packages] == []
    text = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py"))
    named = re.findall(r'MissingExtra\([^,()]+, "(\w+)"', text)
    assert named
    assert set(named) <= extras.keys()


def test_constraints_leave_the_build_of_torch_open() -> None:
    # Pins of CUDA packages would forbid builds for CPUs and for other CUDA versions.
    assert [name for name in pinned() if re.match(r"nvidia|cuda|triton", name)] == []
