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


def commands(text: str) -> Iterator[tuple[str, str]]:
    """Command lines in blocks, `right` or (where an error is shown below) `wrong`; and those that running text mentions."""
    for language, block in re.findall(r"^```(\w*)\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        lines = re.sub(r"\\\n\s*", "", block).splitlines() if language in ("console", "sh", "bash", "") else []
        for line, below in zip(lines, [*lines[1:], ""]):
            if re.match(r"(\$ )?opsin\s", line):
                yield line.removeprefix("$ "), "wrong" if below.startswith("Error:") else "right"
    without_blocks = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    for span in re.findall(r"`(opsin [^`]+)`", without_blocks):
        yield span, "mention"


SHOWN = [
    (page.relative_to(ROOT).as_posix(), *found) for page in PAGES for found in dict.fromkeys(commands(text_of(page)))
]


@every_page
def test_generated_parts_are_up_to_date(page: Path) -> None:
    text = text_of(page)
    assert generate.renewed(text) == text, "run: python docs/generate.py"


def test_generated_parts_are_found() -> None:
    assert text_of(ROOT / "docs" / "verbs" / "train.md").count("<!-- generated: ") >= 3
    with pytest.raises(KeyError):
        generate.renewed("<!-- generated: nothing -->\n<!-- end -->\n")


@pytest.mark.parametrize(("page", "line", "kind"), SHOWN, ids=[f"{page}: {line}" for page, line, _ in SHOWN])
def test_commands_can_be_typed(page: str, line: str, kind: str) -> None:
    words = shlex.split(line, comments=True)[1:]
    if kind == "mention":
        _check_mention(line, words)
    elif kind == "wrong":
        with pytest.raises(OpsinError):
            _check_command(words)
    else:
        _check_command(words)


def _check_command(words: list[str]) -> None:
    """Parse a whole command line as the command line itself would, settings included."""
    command, rest = generate.command_of(words)
    context = command.make_context(" ".join(words), list(rest))
    if context.params.get("settings"):
        from opsin.recipe import overrides
        from opsin.run import new_recipe

        new_recipe(context.params["task"], [overrides(context.params["settings"])])


def _check_mention(line: str, words: list[str]) -> None:
    """The verb exists, and the flags that are named with it; patterns such as `opsin data a|b` are cut at the verb."""
    from opsin import cli

    if words[0].startswith("-"):
        return
    words = words[:1] if set(line) & set("|[") or "..." in line else words
    verb = next((verb for verb in cli.verbs().values() if words[0] in (verb.name, *verb.aliases)), None)
    assert verb is not None, f"there is no verb {words[0]}"
    command, rest = cli.load(verb), words[1:]
    if hasattr(command, "commands") and rest:
        assert rest[0] in command.commands, f"there is no command {words[0]} {rest[0]}"
        command, rest = command.commands[rest[0]], rest[1:]
    known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known | {"--help"}] == []


def test_wrong_commands_would_be_found() -> None:
    from typer import TyperException

    with pytest.raises(TyperException, match="no-such-flag"):
        _check_command(["train", "classify", "--no-such-flag"])
    with pytest.raises(StopIteration):
        _check_command(["nothing"])
    with pytest.raises(KeyError):
        _check_command(["data", "nothing"])
    with pytest.raises(OpsinError, match=r"optimizer\.rl"):
        _check_command(["train", "classify", "--data", "x", "optimizer.rl=1"])
    for line in ("opsin train --no-such-flag", "opsin nothing", "opsin data nothing"):
        with pytest.raises(AssertionError):
            _check_mention(line, line.split()[1:])


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
    assert sorted(listed) == sorted(
        path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")
    )


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
