"""What is written down of a public data set: where it is published, how to know it, what it may be used for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from opsin.registry import Registry

catalog = Registry("data set", "opsin.data.catalog")


@dataclass(frozen=True)
class Remote:
    """One published file.

    `md5` is the checksum that the publisher gives, `size` its bytes (None where no size is published).
    """

    name: str
    md5: str
    size: int | None = None


@dataclass(frozen=True)
class Table:
    """A file of fixed-size records that the data set's folder holds once complete; how a re-packed copy is recognized.

    Args:
        path: in the folder; `.gz` files are looked at unpacked.
        header: bytes before the first record.
        record: bytes of one record.
        count: number of records.
        label: position of the label in a record.
        first: labels of the first records, where they are known.
    """

    path: str
    header: int
    record: int
    count: int
    label: int = 0
    first: tuple[int, ...] = ()


@dataclass(frozen=True)
class Entry:
    """A public data set.

    Args:
        name: as in `opsin data get NAME`.
        title: what it is, one line.
        format: the format (`opsin.data.formats`) that reads its folder.
        files: what is published; archives are unpacked.
        urls: addresses of the folder that holds the files, best first, each ending in `/`.
        counts: samples by split.
        classes: number of classes.
        license: SPDX name, or "unknown" when nothing clear is published.
        license_text: what is known about it, shown before anything is fetched.
        commercial: whether the license clearly allows commercial use.
        citation: what to cite.
        homepage: where people read about it.
        source: where addresses and checksums are written down.
        tables: what a complete folder holds.
        unpack: members to take out of archives, by full name; everything else stays in.
        notes: what a reader must know about the files.
    """

    name: str
    title: str
    format: str
    files: tuple[Remote, ...]
    urls: tuple[str, ...]
    counts: dict[str, int]
    classes: int
    license: str
    license_text: str
    commercial: bool
    citation: str
    homepage: str
    source: str
    tables: tuple[Table, ...]
    unpack: tuple[str, ...] = ()
    notes: str = ""


def idx_tables(
    counts: dict[str, int], prefixes: dict[str, str], first: Mapping[str, tuple[int, ...]]
) -> tuple[Table, ...]:
    """Images and labels of 28x28 IDX files, by split; `first` are the first labels."""
    images = [Table(f"{prefixes[s]}-images-idx3-ubyte.gz", 16, 784, n) for s, n in counts.items()]
    labels = [Table(f"{prefixes[s]}-labels-idx1-ubyte.gz", 8, 1, n, 0, first.get(s, ())) for s, n in counts.items()]
    return (*images, *labels)
