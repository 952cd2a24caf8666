"""For mkdocs: links from a page to a file outside `docs/` lead to the repository instead."""

from __future__ import annotations

import posixpath
import re
from typing import Any

_LINK = re.compile(r"(\]\()((?:\.\./)[^)\s]*)(\))")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace relative links that leave the folder of the documentation."""
    folder = posixpath.dirname(posixpath.join("docs", page.file.src_uri))

    def lead(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, found[2]))
        if target.startswith("docs/"):
            return found[0]
        return f"{found[1]}{config['repo_url'].rstrip('/')}/blob/main/{target}{found[3]}"

    return _LINK.sub(lead, markdown)
