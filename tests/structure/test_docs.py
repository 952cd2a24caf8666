"""The documentation: generated parts are up to date, links lead somewhere, every command shown can be typed."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from opsin.errors import OpsinError

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
every_page = pytest.mark.parametrize("page", PAGES, ids=[path.relative_to(ROOT).as_posix() for path in PAGES])


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


generate = _load("generate")


def text_of(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def commands(text: str) -> Iterator[tuple[str, bool]]:
    """Command lines in blocks (whole), and commands named in running text (perhaps only their beginning)."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        if language in ("console", "sh", "bash", ""):
            for line in re.sub(r"\\\n\s*", "", block).splitlines():
                if re.match(r"(\$ )?opsin\s", line):
                    yield line.removeprefix("$ "), True
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(opsin [^`]+)`", without_blocks):
        yield span, False


SHOWN = [(page.relative_to(ROOT).as_posix(), *found) for page in PAGES for found in dict.fromkeys(commands(text_of(page)))]


@every_page
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = text_of(page)
    assert generate.renewed(text) == text, "run: python docs/generate.py"


def test_generated_parts_are_found() -> None:
    assert text_of(ROOT / "docs" / "verbs" / "train.md").count("<!-- generated: ") >= 3
    with pytest.raises(KeyError):
        generate.renewed("<!-- generated: nothing -->\n<!-- end -->\n")


@pytest.mark.parametrize(("page", "line", "whole"), SHOWN, ids=[f"{page}: {line}" for page, line, _ in SHOWN])
def test_commands_can_be_typed(page: str, line: str, whole: bool) -> None:
    words = shlex.split(line, comments=True)[1:]
    if words[0].startswith("-"):
        return
    if not whole and (set(line) & set("|[…") or "..." in line):  # a pattern, not a command
        words = words[:1]
    command, rest = generate.command_of([word for word in words if word not in ("VERB", "TASK")][: None if whole else 2]) if whole else _beginning(words)
    if whole:
        context = command.make_context(" ".join(words), list(rest))
        _check_settings(context.params)
        return
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    assert [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known] == []


def _beginning(words: list[str]) -> tuple[Any, list[str]]:
    """The command that a mention names; a group named alone is a command too."""
    from opsin import cli

    verb = next((verb for verb in cli.verbs().values() if words[0] in (verb.name, *verb.aliases)), None)
    assert verb is not None, f"there is no verb {words[0]}"
    command, rest = cli.load(verb), words[1:]
    if hasattr(command, "commands") and rest:
        assert rest[0] in command.commands, f"there is no command {words[0]} {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    return command, rest


def _check_settings(given: dict[str, Any]) -> None:
    """Words like optimizer.lr=0.1 must be settings, with values of the right type."""
    if not given.get("settings"):
        return
    from opsin.recipe import overrides
    from opsin.run import new_recipe

    new_recipe(given["task"], [overrides(given["settings"])])


def test_wrong_commands_would_be_found() -> None:
    for line in ("opsin train classify --no-such-flag", "opsin nothing", "opsin data nothing"):
        with pytest.raises((Exception, StopIteration)):
            test_commands_can_be_typed("", line, True)
    with pytest.raises(OpsinError):
        test_commands_can_be_typed("", "opsin train classify --data x optimizer.rl=1", True)
    with pytest.raises(AssertionError):
        test_commands_can_be_typed("", "opsin train --no-such-flag", False)


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)[^)]*\)", text_of(page)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        place = page.parent / name if name else page
        if not place.exists() or (anchor and place.suffix == ".md" and anchor not in anchors(text_of(place))):
            broken.append(target)
    assert broken == []


def anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ +(.*)$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_the_navigation_lists_every_page() -> None:
    def pages(entries: list[Any]) -> Iterator[str]:
        for entry in entries:
            for value in entry.values() if isinstance(entry, dict) else [entry]:
                yield from pages(value) if isinstance(value, list) else [value]

    listed = list(pages(yaml.safe_load(text_of(ROOT / "mkdocs.yml"))["nav"]))
    assert sorted(listed) == sorted(path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md"))


def test_every_verb_has_a_page() -> None:
    from opsin import cli

    assert {path.stem for path in (ROOT / "docs" / "verbs").glob("*.md")} == set(cli.verbs())


def test_links_out_of_the_documentation_lead_to_the_repository() -> None:
    class page:
        class file:
            src_uri = "verbs/train.md"

    given = "[a](../../tests/x.py) [b](../settings.md) [c](data.md)"
    found = _load("links").on_page_markdown(given, page=page, config={"repo_url": "https://host/opsin/"})
    assert found == "[a](https://host/opsin/blob/main/tests/x.py) [b](../settings.md) [c](data.md)"
