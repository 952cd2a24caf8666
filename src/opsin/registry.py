"""Names to builders: found by listing a package, through entry points, or given as `pkg.module:builder` or `file.py:builder`.

A module of the package joins by itself when it has a literal `NAMES = ("a", "b")`; the builder of a name is the module's
single `build`, or the function or class of that name (a dash in the name is an underscore in Python). Listing reads
the source as text: no module is imported before one of its names is asked for.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from opsin.errors import ConfigError, UnknownName


class Registry:
    """The names of one kind of thing (models, tasks, formats, ...), each with the builder behind it.

    Args:
        kind: the word used in messages, e.g. "model".
        package: the dotted package that is listed, e.g. "opsin.models".
        leave_out: packages inside it that are registries of their own.
    """

    def __init__(self, kind: str, package: str, leave_out: tuple[str, ...] = ()) -> None:
        self.kind, self.package, self.leave_out = kind, package, leave_out

    @cached_property
    def _modules(self) -> dict[str, str]:
        spec = importlib.util.find_spec(self.package)
        if spec is None or not spec.submodule_search_locations:
            raise ConfigError(f"The package {self.package} that lists {self.kind}s was not found.")
        found: dict[str, str] = {}
        for folder in spec.submodule_search_locations:
            for path in sorted(Path(folder).rglob("*.py")):
                if path.relative_to(folder).parts[0] in self.leave_out:
                    continue
                for name in _literal_names(path):
                    dotted = ".".join((self.package, *path.relative_to(folder).with_suffix("").parts))
                    dotted = dotted.removesuffix(".__init__")
                    if name in found:
                        raise ConfigError(f"Two modules register the {self.kind} '{name}': {found[name]} and {dotted}.")
                    found[name] = dotted
        return found

    @cached_property
    def _plugins(self) -> dict[str, Any]:
        plugins: dict[str, Any] = {}
        for point in entry_points(group="opsin.plugins"):
            kind, _, name = point.name.partition(".")
            if kind != self.kind:
                continue
            if name in self._modules or name in plugins:
                raise ConfigError(f"The plugin {point.value} registers the {self.kind} '{name}', which exists already.")
            plugins[name] = point
        return plugins

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({*self._modules, *self._plugins}))

    def __contains__(self, name: object) -> bool:
        return name in self._modules or name in self._plugins

    def __len__(self) -> int:
        return len(self._modules) + len(self._plugins)

    def module(self, name: str) -> ModuleType:
        """Import and return the module that registers `name`."""
        if name not in self._modules:
            raise UnknownName(self.kind, name, self)
        return importlib.import_module(self._modules[name])

    def where(self, name: str) -> str:
        """The dotted module that registers a name, without importing it; "" for a plugin."""
        return self._modules.get(name, "")

    def get(self, name: str) -> Any:
        """Return the builder (a function or class) of a name, importing its module now.

        Raises:
            UnknownName: if nothing has that name; the message offers the nearest ones.
            ConfigError: if `pkg.module:builder` cannot be found.
        """
        if ":" in name:
            return from_reference(name)
        if name in self._plugins:
            return self._plugins[name].load()
        module = self.module(name)
        attribute = name.replace("-", "_")
        only = len(module.NAMES) == 1 and hasattr(module, "build")
        builder = module.build if only else getattr(module, attribute, None)
        if builder is None:
            raise ConfigError(f"{module.__name__} lists '{name}' in NAMES but has neither {attribute} nor build.")
        return builder


def _literal_names(path: Path) -> tuple[str, ...]:
    text = path.read_text(encoding="utf-8")
    if "NAMES" not in text:
        return ()
    for node in ast.parse(text).body:
        target = (
            node.targets[0]
            if isinstance(node, ast.Assign)
            else node.target
            if isinstance(node, ast.AnnAssign)
            else None
        )
        if (
            isinstance(target, ast.Name)
            and target.id == "NAMES"
            and isinstance(node, ast.Assign | ast.AnnAssign)
            and node.value
        ):
            return tuple(ast.literal_eval(node.value))
    return ()


def from_reference(reference: str) -> Any:
    """Load what `package.module:name` or `path/to/file.py:name` points at.

    Raises:
        ConfigError: if the module, the file or the name in it does not exist; the message says which.
    """
    place, _, attribute = reference.rpartition(":")
    if not place or not attribute:
        raise ConfigError(f"'{reference}' is not of the form pkg.module:name or file.py:name.")
    if place.endswith(".py"):
        path = Path(place).expanduser().resolve()
        if not path.is_file():
            raise ConfigError(f"'{reference}': the file {path} does not exist.")
        name = f"opsin_user_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise ConfigError(f"'{reference}': {path} is not a Python file that can be imported.")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    else:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"'{reference}': no module named '{error.name}'. Is it installed or on PYTHONPATH?"
            ) from error
    if not hasattr(module, attribute):
        public = [n for n in vars(module) if not n.startswith("_")]
        raise UnknownName(f"name in {place}", attribute, public)
    return getattr(module, attribute)
