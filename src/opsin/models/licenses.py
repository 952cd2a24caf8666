"""Licenses of weights: what they are called, what may be done, and that nobody takes one over without saying so.

Permissive licenses need no word. Any other, and none at all, is refused until the person names it
(`--accept-license cc-by-nc-4.0`): an unknown license is treated as non-commercial.
"""

from __future__ import annotations

import re

from opsin.errors import ConfigError

UNKNOWN = "unknown"
OWN = "yours to choose (trained from scratch)"
"""What a bundle says of weights that were trained from nothing: they belong to who trained them."""

PERMISSIVE = frozenset(
    {
        *("0bsd", "apache-2.0", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "cc-by-3.0", "cc-by-4.0", "cc0-1.0"),
        *("isc", "mit", "mit-0", "unlicense", "zlib"),
    }
)

_ALSO = (  # how the same license is written elsewhere, after lower case and dashes; first match wins
    (r"apache-?(software-)?(license-?)?(version-?)?2(\.0)?", "apache-2.0"),
    (r"(the-)?mit(-license)?", "mit"),
    (r'(the-)?bsd-3-?clause(-license|-"?new"?-or-"?revised"?(-license)?)?|new-bsd|modified-bsd', "bsd-3-clause"),
    (r'(the-)?bsd-2-?clause(-license|-"?simplified"?(-license)?)?|simplified-bsd', "bsd-2-clause"),
    (r"bsd-license", "bsd"),
    (r"cc-?0(-1\.0)?", "cc0-1.0"),
    (r".*facebookresearch/swag/.*", "cc-by-nc-4.0"),  # torchvision gives a page instead of a name
    (r"other|none|null|unknown|", UNKNOWN),
)


def normalized(text: str | None) -> str:
    """The name of a license in lower case, as SPDX writes it; `unknown` for none.

    Example:
        >>> normalized("Apache License 2.0"), normalized(None)
        ('apache-2.0', 'unknown')
    """
    name = re.sub(r"[\s_]+", "-", (text or "").strip().lower())
    return next((known for pattern, known in _ALSO if re.fullmatch(pattern, name)), name)


def is_permissive(name: str | None) -> bool:
    """Whether weights under it may be used for anything; of licenses joined by AND or WITH, each has to allow that."""
    parts = re.split(r"-(?:and|with)-", normalized(name).strip("()"))
    return name == OWN or all(normalized(part) in PERMISSIVE for part in parts)


def words(name: str | None) -> str:
    """The license and what follows from it, for people."""
    if name == OWN:
        return OWN
    known = normalized(name)
    if is_permissive(known):
        return f"{known}, permissive"
    if known == UNKNOWN:
        return "unknown, treated as non-commercial"
    research = re.search(r"\bnc\b|non-?commercial|research", known)
    return f"{known}, {'not for commercial use' if research else 'not among the permissive ones: read it first'}"


def require(what: str, name: str | None, accepted: str | None, how: str) -> None:
    """Refuse weights whose license is not permissive, unless the person named that license.

    Args:
        what: the weights, for the message.
        name: of their license, None for unknown.
        accepted: what the person said that they accept.
        how: the flag or setting that accepts, e.g. "--accept-license".

    Raises:
        ConfigError: that names the license and how to accept it.
    """
    if is_permissive(name) or (accepted is not None and normalized(accepted) == normalized(name)):
        return
    other = f" ({how} {accepted} names another one.)" if accepted is not None else ""
    raise ConfigError(
        f"{what}: the license is {words(name)}.{other} To use the weights nevertheless, on your own account: "
        f"{how}{'' if how.endswith('=') else ' '}{normalized(name)}"
    )
