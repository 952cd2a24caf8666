"""The blocks of any network from input to output, for freezing, learning rates by depth, and choosing what is trained.

A block is what a person would point at: a stage of a ResNet, an inception module, a block of a transformer. Names are
those of the state dict without wrappers (`net.`). The head, as the network names it (`head_names`) or its last layer with
weights, is the last block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from opsin.errors import ConfigError, UnknownName, nearest
from opsin.models.weights import head_of

HEAD = "head"
_LARGE = 0.7  # share of the trunk's parameters above which a module is looked into


@dataclass(frozen=True)
class Block:
    """Parameters that belong together.

    Args:
        name: path of the module, or `head`.
        parameters: names of its parameters in the model.
    """

    name: str
    parameters: tuple[str, ...]


def blocks_of(model: nn.Module) -> list[Block]:
    """Blocks in the order of definition, the head last; every parameter is in exactly one."""
    head = {name for name in head_of(model) if name in dict(model.named_parameters())}
    trunk = {name: p.numel() for name, p in model.named_parameters() if name not in head}
    shapes = dict(model.named_parameters())
    found: list[Block] = []
    for names in _divided(model, "", trunk, sum(trunk.values()), row=False):
        if found and all(shapes[name].ndim <= 1 for name in names):  # a normalization belongs to what it normalizes
            found[-1] = Block(found[-1].name, found[-1].parameters + names)
        else:
            found.append(Block(_common(names), names))
    last = tuple(name for name, _ in model.named_parameters() if name in head)
    return [*found, Block(HEAD, last)] if last else found


def _divided(module: nn.Module, path: str, trunk: dict[str, int], total: int, row: bool) -> list[tuple[str, ...]]:
    """Cut a module at its children, and those that are rows of blocks at theirs."""
    own = (_joined(path, name) for name, _ in module.named_parameters(recurse=False))
    parts: list[tuple[str, ...]] = [kept] if (kept := tuple(name for name in own if name in trunk)) else []
    for name, child in module.named_children():
        where = _joined(path, name)
        names = tuple(n for n in (_joined(where, p) for p, _ in child.named_parameters()) if n in trunk)
        large = sum(trunk[n] for n in names) > _LARGE * total
        if names and _is_row(child, large, row):
            parts += _divided(child, where, trunk, total, row=isinstance(child, nn.Sequential | nn.ModuleList))
        elif names:
            parts.append(names)
    return parts


def _is_row(module: nn.Module, large: bool, in_row: bool) -> bool:
    """Whether a module is a row of blocks rather than a block: a list, a flat trunk of layers, or nearly the whole network."""
    learned = [child for child in module.children() if any(True for _ in child.parameters())]
    if isinstance(module, nn.ModuleList):
        return True
    if not isinstance(module, nn.Sequential):
        return large and bool(learned) and not in_row
    leaves = [child for child in learned if not any(True for _ in child.children())]
    nested = [child for child in learned if isinstance(child, nn.Sequential)]
    return len(leaves) > 3 or (len(learned) > 3 and (large or len(nested) > 3))


def _common(names: Sequence[str]) -> str:
    """The module that holds all of the parameters, or the first parameter's name where that is the whole network."""
    if len(names) == 1:
        stem = _bare(names[0]).rpartition(".")[0]
        return stem or _bare(names[0])
    parts = [_bare(name).split(".") for name in names]
    shared: list[str] = []
    for words in zip(*parts):
        if len(set(words)) > 1:
            break
        shared.append(words[0])
    return ".".join(shared) or ".".join(parts[0])


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _bare(name: str) -> str:
    while name.startswith("net."):
        name = name.removeprefix("net.")
    return name


def choose(model: nn.Module, words: str) -> tuple[str, ...]:
    """Names of the parameters that a person's words mean.

    Args:
        model: the network, wrapped or not.
        words: `head`, `all`, `last:N`, `from:BLOCK`, or comma-separated patterns of parameter or module names.

    Raises:
        ConfigError: if there are fewer blocks than N, a pattern matches nothing, or nothing is chosen.
        UnknownName: if there is no such block.
    """
    blocks = blocks_of(model)
    every = [name for block in blocks for name in block.parameters]
    kind, _, value = words.partition(":")
    if words == "all":
        return tuple(every)
    if words == HEAD:
        return _of(blocks[-1:])
    if kind == "last" and value:
        return _of(blocks[-1 - _count(words, value, len(blocks) - 1) :])
    if kind == "from" and value:
        names = [block.name for block in blocks]
        if value not in names:
            raise UnknownName("block", value, names)
        return _of(blocks[names.index(value) :])
    chosen: set[str] = set()
    for pattern in (word.strip() for word in words.split(",")):
        fits = {n for n in every if fnmatchcase(_bare(n), pattern) or fnmatchcase(_bare(n), f"{pattern}.*")}
        fits |= set(_of([block for block in blocks if block.name == pattern]))
        if not fits:
            near = nearest(pattern, [*(b.name for b in blocks), *map(_bare, every)])
            hint = f" Did you mean {' or '.join(near)}?" if near else f" Blocks: {', '.join(b.name for b in blocks)}."
            raise ConfigError(f"train = '{words}': no parameter is named '{pattern}'.{hint}")
        chosen |= fits
    return tuple(name for name in every if name in chosen)


def _count(words: str, value: str, most: int) -> int:
    if not value.isdigit() or not 0 <= int(value) <= most:
        raise ConfigError(
            f"train = '{words}': expected last:N with N from 0 to {most}, the number of blocks before the head."
        )
    return int(value)


def _of(blocks: Sequence[Block]) -> tuple[str, ...]:
    return tuple(name for block in blocks for name in block.parameters)
