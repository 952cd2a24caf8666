"""The command line: one verb per file, found by listing this folder, imported only when it is called.

A verb is a file `cli/VERB.py` (an underscore in the file name is a dash in the verb) with three one-line literals:

    NAMES = ("train",)                    # the verb, then other words that mean the same
    HELP = "Train a model on your data."  # its line in `opsin --help`
    ORDER = 30                            # its place there

and either a function `command(...)` with typer's annotations or, for a group of verbs, `app = group("...")`. Files that
begin with an underscore are no verbs. See `opsin.cli._frame` for how results are given.

Exit codes: 0 done; 1 a check found errors; 2 wrong use or bad input; 3 a mistake in opsin itself; 130 interrupted.
"""

from __future__ import annotations

import ast
import importlib
import re
import sys
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer
from typer.core import TyperGroup
from typer.main import get_command, get_group

from opsin.cli import _frame
from opsin.errors import OpsinError, UnknownName

BUG, INTERRUPTED, PIPE_CLOSED = 3, 130, 141  # 141 = 128 + SIGPIPE, what a shell reports for any program
_LITERAL = re.compile(r"^(NAMES|HELP|ORDER)\s*(?::[^=\n]+)?=\s*(.+)$", re.MULTILINE)
_SECTION = re.compile(r"^\s*(Args|Returns|Raises|Example):\s*$", re.MULTILINE)
_CONTEXT = {"help_option_names": ["-h", "--help"]}


class Verb(NamedTuple):
    """One verb, known from the text of its file."""

    name: str
    aliases: tuple[str, ...]
    help: str
    order: int
    module: str


@lru_cache(maxsize=1)
def verbs() -> dict[str, Verb]:
    """All verbs by name, in the order of `opsin --help`; no module is imported for it."""
    found = [_read(path) for path in Path(__file__).parent.glob("[!_]*.py")]
    return {verb.name: verb for verb in sorted(found, key=lambda verb: (verb.order, verb.name))}


def _read(path: Path) -> Verb:
    literals = {name: ast.literal_eval(value) for name, value in _LITERAL.findall(path.read_text(encoding="utf-8"))}
    missing = [name for name in ("NAMES", "HELP", "ORDER") if name not in literals]
    if missing:
        raise OpsinError(f"{path}: a verb needs the literal {' and '.join(missing)}, each on one line.")
    name, *aliases = literals["NAMES"]
    return Verb(name, tuple(aliases), literals["HELP"], literals["ORDER"], f"{__name__}.{path.stem}")


def load(verb: Verb) -> Any:
    """Import a verb's module and turn it into a command (typer's TyperCommand or TyperGroup)."""
    module = importlib.import_module(verb.module)
    if hasattr(module, "app"):
        command: Any = get_group(module.app)
    else:
        holder = typer.Typer(add_completion=False, rich_markup_mode=None)
        holder.command(verb.name, short_help=verb.help)(module.command)
        command = get_command(holder)
    command.name = verb.name
    _dress(command)
    return command


def _dress(command: Any) -> None:
    """Give a command and those below it `-h`, `--debug` and help without the docstring sections for programmers."""
    command.context_settings = {**_CONTEXT, **(command.context_settings or {})}
    command.rich_markup_mode = None
    if command.help:
        command.help = _SECTION.split(command.help)[0].rstrip()
    if isinstance(command, TyperGroup):
        for below in command.commands.values():
            _dress(below)
    else:
        command.params.append(_debug_option())


def _debug_option() -> Any:
    def carrier(
        debug: Annotated[
            bool, typer.Option("--debug", help="Add the traceback to an error.", expose_value=False)
        ] = False,
    ) -> None:
        """A command that exists for its option."""

    holder = typer.Typer(add_completion=False)
    holder.command()(carrier)
    return get_command(holder).params[0]


class _Verbs(TyperGroup):
    """The group of all verbs; lists them from the text of their files and imports the one that is called."""

    def list_commands(self, ctx: Any) -> list[str]:
        del ctx
        return list(verbs())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        del ctx
        return next((load(verb) for verb in verbs().values() if cmd_name in (verb.name, *verb.aliases)), None)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        command = self.get_command(ctx, args[0])
        if command is None:
            raise UnknownName("command", args[0], verbs(), "See: opsin --help")
        return command.name, command, args[1:]

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(verb.name, verb.help) for verb in verbs().values()])

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except BrokenPipeError as error:
            if _output_is_gone():
                raise _frame.OutputClosed from error
            raise RuntimeError("A process or connection that opsin talked to has ended.") from error


def _output_is_gone() -> bool:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        _frame.forget_output()
        return True
    return False


def _version(wanted: bool) -> None:
    if wanted:
        from opsin import __version__

        typer.echo(f"opsin {__version__}")
        raise typer.Exit()


def _root() -> Any:
    app = typer.Typer(
        cls=_Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode=None, context_settings=_CONTEXT
    )

    @app.callback(
        help="Deep learning for computer vision: from a folder of pictures to a model you can trust and ship."
    )
    def root(
        version: Annotated[
            bool, typer.Option("--version", help="Print the version.", is_eager=True, callback=_version)
        ] = False,
        debug: Annotated[
            bool, typer.Option("--debug", help="Add the traceback to an error (works after a verb too).")
        ] = False,
    ) -> None:
        del version, debug

    return get_group(app)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code.

    Args:
        argv: the words after `opsin`; those of the process by default.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    flags = set(_before_dashes(words))
    json_mode = "--json" in flags and not flags & {"-h", "--help"}
    for stream in (sys.stdout, sys.stderr):  # a file name that the terminal cannot show is no reason to fail
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    try:
        with _frame.results_only(json_mode):
            return _run(words, json_mode, debug="--debug" in flags)
    except _frame.OutputClosed:
        return PIPE_CLOSED


def _before_dashes(words: Sequence[str]) -> Iterator[str]:
    for word in words:
        if word == "--":
            return
        yield word


def _run(words: list[str], json_mode: bool, debug: bool) -> int:
    try:
        result = _root().main(args=words, prog_name="opsin", standalone_mode=False)
        code = result if isinstance(result, int) and not isinstance(result, bool) else 0
        if code != INTERRUPTED:
            return code
        return _fail(KeyboardInterrupt("Interrupted."), INTERRUPTED, json_mode, traceback=False)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(KeyboardInterrupt("Interrupted."), INTERRUPTED, json_mode, traceback=debug)
    except OpsinError as error:
        return _fail(error, error.exit_code, json_mode, traceback=debug)
    except typer.TyperException as error:
        return _fail(error, 2, json_mode, traceback=debug)
    except _frame.OutputClosed:
        raise
    except OSError as error:  # a missing file, no permission, a full disk: the message names it
        return _fail(error, 2, json_mode, traceback=debug)
    except Exception as error:
        return _fail(error, BUG, json_mode, traceback=True)


def _fail(error: BaseException, code: int, json_mode: bool, traceback: bool) -> int:
    """Say what went wrong, on standard error for people, as `{"error": ...}` for machines; return the exit code."""
    message, usage = _message(error, code), _usage(error)
    trace = _trace(error) if traceback else ""
    if json_mode and not _frame.emitted():
        kind = "UsageError" if isinstance(error, typer.TyperException) else type(error).__name__
        report = {"type": kind, "message": message, "exit_code": code} | ({"traceback": trace} if trace else {})
        _frame.emit({"error": report}, True, lambda: None)
        return code
    if message.startswith("Usage:"):  # a group called without a verb: its help is the message
        usage = heading = ""
    else:
        heading = "" if code == INTERRUPTED else "Error: "
    typer.echo(f"{trace}{usage}{heading}{message}", err=True)
    return code


def _message(error: BaseException, code: int) -> str:
    if isinstance(error, typer.TyperException):
        return error.format_message()
    if code == BUG:
        return (
            f"opsin failed with {type(error).__name__}: {error}\n"
            "This is a mistake in opsin, not in what you did. Please report it with the lines above and `opsin env`."
        )
    if isinstance(error, OSError) and error.strerror:
        place = f": {error.filename}" if error.filename is not None else ""
        return f"{error.strerror}{place}"
    return str(error) or type(error).__name__


def _usage(error: BaseException) -> str:
    context = getattr(error, "ctx", None)
    if not isinstance(error, typer.TyperException) or context is None:
        return ""
    return f"{context.get_usage()}\nSee: {context.command_path} --help\n\n"


def _trace(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error))
