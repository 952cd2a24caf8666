"""What holds for every verb, present and future; and how results, errors and interruptions come out."""

from __future__ import annotations

import dataclasses
import enum
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import typer
from typer.core import TyperGroup

import opsin
from opsin import cli
from opsin.cli import _frame
from opsin.errors import DataError
from tests.structure.processes import python


def leaves(command: Any, words: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command below a verb, with the words that call it."""
    if isinstance(command, TyperGroup):
        for name, below in command.commands.items():
            yield from leaves(below, (*words, name))
    else:
        yield words, command


COMMANDS = [leaf for verb in cli.verbs().values() for leaf in leaves(cli.load(verb), (verb.name,))]
every_command = pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) for words, _ in COMMANDS])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[..., Any]], None]:
    """Make a function the only verb, `toy`."""

    def register(function: Callable[..., Any]) -> None:
        module = ModuleType("toy_verb")
        module.command = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "toy_verb", module)
        verb = cli.Verb("toy", ("plaything",), "Do what the test says.", 1, "toy_verb")
        monkeypatch.setattr(cli, "verbs", lambda: {"toy": verb})

    return register


def raising(error: BaseException) -> Callable[..., None]:
    def command(json: _frame.Json = False) -> None:
        raise error

    return command


# Every verb -----------------------------------------------------------------------------------------------------------


def test_the_list_of_verbs_is_the_list_of_files() -> None:
    files = {path.stem.replace("_", "-") for path in Path(cli.__file__).parent.glob("[!_]*.py")}
    assert set(cli.verbs()) == files
    assert "env" in files


def test_help_lists_every_verb_with_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    shown = capsys.readouterr().out
    for verb in cli.verbs().values():
        assert f"  {verb.name} " in shown
        assert verb.help.endswith(".")
        assert "\n" not in verb.help


def test_no_word_calls_two_verbs() -> None:
    words = [word for verb in cli.verbs().values() for word in (verb.name, *verb.aliases)]
    assert len(words) == len(set(words))


@pytest.mark.parametrize("name", cli.verbs())
def test_every_verb_answers_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in ("--help", "-h"):
        assert cli.main([name, flag]) == 0
        assert f"Usage: opsin {name}" in capsys.readouterr().out


@every_command
def test_every_command_answers_help(words: tuple[str, ...], command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--help"]) == 0
    captured = capsys.readouterr()
    assert f"Usage: opsin {' '.join(words)}" in captured.out
    assert captured.err == ""
    for section in ("Args:", "Returns:", "Raises:"):  # for programmers
        assert section not in captured.out


@every_command
def test_every_command_speaks_to_machines(words: tuple[str, ...], command: Any) -> None:
    options = {option for parameter in command.params for option in parameter.opts}
    assert {"--json", "--debug"} <= options


@every_command
def test_every_option_is_explained(words: tuple[str, ...], command: Any) -> None:
    assert [parameter.name for parameter in command.params if not getattr(parameter, "help", None)] == []


@every_command
def test_unknown_option_is_wrong_use(words: tuple[str, ...], command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*words, "--no-such-option"]) == 2
    captured = capsys.readouterr()
    assert "--no-such-option" in captured.err
    assert captured.out == ""


def test_a_file_without_its_literals_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "verb.py").write_text('NAMES = ("verb",)\nORDER: int = 3  # third\n')
    with pytest.raises(Exception, match=r"verb\.py: a verb needs the literal HELP"):
        cli._read(tmp_path / "verb.py")
    (tmp_path / "verb.py").write_text('NAMES = ("verb", "word")\nHELP = "Do."\nORDER: int = 3  # third\n')
    assert cli._read(tmp_path / "verb.py") == ("verb", ("word",), "Do.", 3, "opsin.cli.verb")


# The frame ------------------------------------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"opsin {opsin.__version__}\n"


def test_no_words_show_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("Usage: opsin")
    assert captured.out == ""


def test_unknown_verb_offers_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["envv"]) == 2
    assert capsys.readouterr().err == "Error: Unknown command 'envv'. Did you mean 'env'? See: opsin --help\n"


def test_an_alias_calls_the_verb(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy(lambda: _frame.emit({}, False, lambda: "played"))
    assert cli.main(["plaything"]) == 0
    assert capsys.readouterr().out == "played\n"


@pytest.mark.parametrize("result", [0, 1, None])
def test_the_return_value_is_the_exit_code(result: int | None, toy: Any) -> None:
    toy(lambda: result)
    assert cli.main(["toy"]) == (result or 0)


def test_exit_is_obeyed(toy: Any) -> None:
    toy(raising(typer.Exit(1)))
    assert cli.main(["toy"]) == 1


def test_errors_for_people(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy(raising(DataError("a.jpg cannot be read.")))
    assert cli.main(["toy"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "Error: a.jpg cannot be read.\n"
    assert captured.out == ""


@pytest.mark.parametrize("words", [["toy", "--debug"], ["--debug", "toy"]])
def test_debug_adds_the_traceback(words: list[str], toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy(raising(DataError("a.jpg cannot be read.")))
    assert cli.main(words) == 2
    shown = capsys.readouterr().err
    assert "Traceback (most recent call last)" in shown
    assert shown.endswith("Error: a.jpg cannot be read.\n")


def test_errors_for_machines(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy(raising(DataError("a.jpg cannot be read.")))
    assert cli.main(["toy", "--json"]) == 2
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {
        "error": {"type": "DataError", "message": "a.jpg cannot be read.", "exit_code": 2}
    }
    assert cli.main(["toy", "--json", "--debug"]) == 2
    assert "Traceback" in json.loads(capsys.readouterr().out)["error"]["traceback"]


def test_wrong_use_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env", "--json", "--colour"]) == 2
    error = json.loads(capsys.readouterr().out)["error"]
    assert error["type"] == "UsageError"
    assert "--colour" in error["message"]


def test_a_mistake_in_opsin_is_called_one(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy(raising(ZeroDivisionError("division by zero")))
    assert cli.main(["toy"]) == 3
    shown = capsys.readouterr().err
    assert "Traceback" in shown
    assert "opsin failed with ZeroDivisionError: division by zero" in shown
    assert "mistake in opsin" in shown


def test_errors_of_the_operating_system_name_the_file(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy(lambda: Path("no-such-folder/file").read_text())
    assert cli.main(["toy"]) == 2
    assert capsys.readouterr().err == f"Error: No such file or directory: {Path('no-such-folder/file')}\n"


@pytest.mark.parametrize("error", [KeyboardInterrupt(), typer.Abort()])
def test_interruption(error: BaseException, toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    toy(raising(error))
    assert cli.main(["toy"]) == 130
    assert capsys.readouterr().err.strip() == "Interrupted."
    assert cli.main(["toy", "--json"]) == 130
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 130


# Results --------------------------------------------------------------------------------------------------------------


class Color(enum.Enum):
    RED = "red"


class Size(NamedTuple):
    height: int
    width: int


@dataclasses.dataclass
class Box:
    score: float
    file: Path


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (float("nan"), None),
        (-float("inf"), None),
        (np.float32(0.5), 0.5),
        (np.float64("nan"), None),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (np.array([[1.0, np.nan]]), [[1.0, None]]),
        (PurePosixPath("a/b.jpg"), "a/b.jpg"),
        (Box(float("nan"), PurePosixPath("a.jpg")), {"score": None, "file": "a.jpg"}),
        (Size(2, 3), {"height": 2, "width": 3}),
        (Color.RED, "red"),
        ({1: (1, 2), Color.RED: {"b", "a"}}, {"1": [1, 2], "red": ["a", "b"]}),
        (date(2026, 1, 2), "2026-01-02"),
        (None, None),
        (True, True),
    ],
)
def test_values_become_plain(value: Any, expected: Any) -> None:
    assert _frame.plain({"value": value}) == {"value": expected}
    json.dumps(_frame.plain(value), allow_nan=False)


@pytest.mark.parametrize("value", [object(), {(1, 2): 3}, Box])
def test_what_has_no_plain_form_is_an_error(value: Any) -> None:
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        _frame.plain(value)


def test_json_is_one_object_whatever_else_is_printed(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def command(json: _frame.Json = False) -> None:
        print("a library that chats")
        _frame.console().print("reading")
        _frame.emit({"loss": float("nan")}, json, lambda: "never")

    toy(command)
    assert cli.main(["toy", "--json"]) == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {"loss": None}
    assert "a library that chats" in captured.err
    print("after")
    assert capsys.readouterr().out == "after\n"


def test_not_even_other_processes_print_between(tmp_path: Path) -> None:
    (tmp_path / "toy.py").write_text(
        "import os, sys\n"
        "from types import ModuleType\n"
        "from opsin import cli\n"
        "from opsin.cli._frame import Json, emit\n"
        "early = sys.stdout\n"
        "def command(json: Json = False) -> None:\n"
        "    os.system('echo noise of a process')\n"
        "    early.write('noise of a logger')\n"
        "    emit({'ok': 'ü'}, json, lambda: 'done')\n"
        "module = ModuleType('toy_verb'); module.command = command; sys.modules['toy_verb'] = module\n"
        "cli.verbs = lambda: {'toy': cli.Verb('toy', (), 'Do.', 1, 'toy_verb')}\n"
        "sys.exit(cli.main(sys.argv[1:]))\n"
    )
    done = python(str(tmp_path / "toy.py"), "toy", "--json")
    assert json.loads(done.stdout) == {"ok": "ü"}
    assert "noise of a process" in done.stderr
    assert "noise of a logger" in done.stderr
    assert "done" in python(str(tmp_path / "toy.py"), "toy").stdout


def test_a_second_object_is_a_mistake(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def command(json: _frame.Json = False) -> None:
        _frame.emit({}, json, lambda: None)
        _frame.emit({}, json, lambda: None)

    toy(command)
    assert cli.main(["toy", "--json"]) == 3
    captured = capsys.readouterr()
    assert json.loads(captured.out) == {}
    assert "emit() was called twice" in captured.err


def test_people_see_tables_in_full_and_plain(toy: Any, capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> None:
        from rich.table import Table

        table = Table("file")
        table.add_row("x" * 300)
        _frame.emit({}, False, lambda: table)

    toy(command)
    assert cli.main(["toy"]) == 0
    shown = capsys.readouterr().out
    assert "x" * 300 in shown
    assert "\x1b" not in shown


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGPIPE")
@pytest.mark.parametrize("words", [["env"], ["env", "--json"]])
def test_a_reader_that_leaves_is_no_error(words: list[str]) -> None:
    # The pipe is closed before opsin writes, as `| head -0` would.
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-m", "opsin", *words], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 141
    assert done.stderr == ""


# opsin env ------------------------------------------------------------------------------------------------------------


def test_env_for_machines(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPSIN_HOME", "/somewhere/else")
    monkeypatch.setenv("OPSIN_TOKEN", "do not tell")
    assert cli.main(["env", "--json"]) == 0
    shown = capsys.readouterr().out
    facts = json.loads(shown)
    assert facts["packages"]["torch"]
    assert facts["processor"]["cores_usable"] >= 1
    assert isinstance(facts["torch"]["cpu_bf16"], bool)
    assert Path(facts["folders"]["downloads"]) == Path("/somewhere/else")
    assert facts["variables"]["OPSIN_TOKEN"] == "(hidden)"
    assert "do not tell" not in shown


def test_env_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["env"]) == 0
    shown = capsys.readouterr().out
    assert "processor.name" in shown
    assert all(len(line.split(None, 1)) == 2 for line in shown.splitlines())


def test_env_works_without_torch_and_other_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    from opsin.cli import env

    monkeypatch.setitem(sys.modules, "torch", None)  # importing it raises ImportError
    monkeypatch.setattr(env.metadata, "requires", lambda name: ["no-such-package>=1", 'ruff; extra == "dev"'])
    facts = env.gather()
    assert facts["packages"] == {"no-such-package": None}
    assert facts["torch"]["error"].startswith("ModuleNotFoundError")
    assert "no-such-package" in env.as_text(facts)
