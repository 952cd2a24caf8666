"""EMNIST: handwritten letters and digits (Cohen, Afshar, Tapson, van Schaik; from NIST Special Database 19).

One archive holds six splits; each is a name of its own here and takes only its files out. In the files every picture is
transposed (it lies on its side, mirrored); the format `idx` turns it upright when it reads, and says so.
"""

from __future__ import annotations

from opsin.data.entries import Entry, Remote, idx_tables

NAMES = ("emnist-balanced", "emnist-byclass", "emnist-bymerge", "emnist-digits", "emnist-letters", "emnist-mnist")

_CONTENTS = {
    "byclass": (697_932, 116_323, 62, "digits, capital and small letters, as unbalanced as they were collected"),
    "bymerge": (697_932, 116_323, 47, "as byclass, with 15 letters merged whose capital and small forms look alike"),
    "balanced": (112_800, 18_800, 47, "the classes of bymerge, equally many of each"),
    "letters": (124_800, 20_800, 26, "letters, capital and small merged; labels are 1 to 26"),
    "digits": (240_000, 40_000, 10, "digits, equally many of each"),
    "mnist": (60_000, 10_000, 10, "digits, as many as in MNIST"),
}


def _entry(split: str) -> Entry:
    train, test, classes, what = _CONTENTS[split]
    counts = {"train": train, "test": test}
    prefixes = {part: f"gzip/emnist-{split}-{part}" for part in counts}
    tables = idx_tables(counts, prefixes, {})
    return Entry(
        name=f"emnist-{split}",
        title=f"EMNIST {split}: {what}; 28x28 gray, {classes} classes",
        format="idx",
        files=(Remote("gzip.zip", "58c8d27c78d21e728a6bc7b3cc06412e"),),
        urls=("https://biometrics.nist.gov/cs_links/EMNIST/",),
        counts=counts,
        classes=classes,
        license="unknown",
        license_text="No license text is published with the files. NIST Special Database 19, from which they are made, "
        "is a work of the United States government.",
        commercial=False,
        citation="G. Cohen, S. Afshar, J. Tapson, A. van Schaik: EMNIST: an extension of MNIST to handwritten letters. "
        "arXiv:1702.05373, 2017.",
        homepage="https://www.nist.gov/itl/products-and-services/emnist-dataset",
        source="torchvision.datasets.EMNIST (url, md5); counts from the paper and NIST's page",
        tables=tables,
        unpack=(*(table.path for table in tables), f"gzip/emnist-{split}-mapping.txt"),
        notes="Pictures are stored transposed; `idx` turns them upright.",
    )


def emnist_balanced() -> Entry:
    """131,600 characters, 47 classes."""
    return _entry("balanced")


def emnist_byclass() -> Entry:
    """814,255 characters, 62 classes."""
    return _entry("byclass")


def emnist_bymerge() -> Entry:
    """814,255 characters, 47 classes."""
    return _entry("bymerge")


def emnist_digits() -> Entry:
    """280,000 digits."""
    return _entry("digits")


def emnist_letters() -> Entry:
    """145,600 letters, 26 classes."""
    return _entry("letters")


def emnist_mnist() -> Entry:
    """70,000 digits."""
    return _entry("mnist")
