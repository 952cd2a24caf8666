"""Public data sets by name, one file each.

A file has a literal `NAMES` and one function per name (a dash is an underscore) that gives its `Entry`. `get` brings a
data set onto this machine; nothing else here touches the network.
"""

from __future__ import annotations

from typing import Any

from opsin.data.download import get
from opsin.data.entries import Entry, catalog

__all__ = ["card", "catalog", "get"]


def card(name: str) -> dict[str, Any]:
    """What people and machines are shown of a data set before it is fetched.

    Raises:
        UnknownName: if the catalog has no such data set.
    """
    one: Entry = catalog.get(name)()
    shown = (
        "name",
        "format",
        "counts",
        "classes",
        "license",
        "license_text",
        "commercial",
        "citation",
        "homepage",
        "notes",
    )
    return {"about": one.title, **{key: getattr(one, key) for key in shown}, "files": [file.name for file in one.files]}
