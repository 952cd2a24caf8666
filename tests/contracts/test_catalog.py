"""Every public data set of the catalog is described well enough to be fetched, checked and read."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest
import torchvision

from opsin.data.catalog import card, catalog
from opsin.data.download import entry
from opsin.data.formats import readable


@pytest.mark.parametrize("name", list(catalog))
def test_entry(name: str) -> None:
    one = entry(name)
    assert one.name == name
    assert one.format in readable()
    assert one.files
    for file in one.files:
        assert re.fullmatch(r"[0-9a-f]{32}", file.md5)
        assert "/" not in file.name
        assert file.size is None or file.size > 0
    for url in one.urls:
        assert urlsplit(url).scheme in ("http", "https")
        assert url.endswith("/")
    assert {"train", "test"} <= one.counts.keys()
    for text in (one.title, one.license, one.license_text, one.citation, one.homepage, one.source):
        assert len(text) >= 3
    assert not one.commercial or one.license != "unknown"
    assert sum(table.count for table in one.tables if table.record > 100) == sum(one.counts.values())
    inside = set(one.unpack) or {file.name for file in one.files}
    assert {table.path for table in one.tables} <= inside
    assert all(0 <= label < max(one.classes, 1) for table in one.tables for label in table.first)


@pytest.mark.parametrize("name", list(catalog))
def test_card_is_plain_data(name: str) -> None:
    one = card(name)
    assert json.loads(json.dumps(one)) == one
    assert {"name", "about", "license", "counts", "citation"} <= one.keys()


def test_names_are_there() -> None:
    splits = ("byclass", "bymerge", "balanced", "letters", "digits", "mnist")
    assert {"mnist", "fashion-mnist", "cifar10", "cifar100", *(f"emnist-{s}" for s in splits)} <= set(catalog)


def test_checksums_equal_torchvision_s() -> None:
    for name, theirs in (("mnist", torchvision.datasets.MNIST), ("fashion-mnist", torchvision.datasets.FashionMNIST)):
        assert {(f.name, f.md5) for f in entry(name).files} == set(theirs.resources)
        assert entry(name).urls[0] in theirs.mirrors
    theirs = torchvision.datasets.EMNIST
    for split in theirs.splits:
        one = entry(f"emnist-{split}")
        assert one.files[0].md5 == theirs.md5
        assert one.urls[0] + one.files[0].name == theirs.url
        assert one.classes == len(set(theirs.classes_split_dict[split]) - {"N/A"})


def test_listing_imports_no_torch() -> None:
    code = (
        "import sys, opsin.data.download; from opsin.data.catalog import catalog; "
        "list(catalog); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
