"""CIFAR-100: CIFAR-10's larger sister, the binary version, which holds no pickles."""

from __future__ import annotations

from opsin.data.entries import Entry, Remote, Table

NAMES = ("cifar100",)

_FOLDER = "cifar-100-binary"


def cifar100() -> Entry:
    """60,000 pictures, 32x32 RGB, 100 fine classes in 20 coarse ones."""
    first = {"train": (19, 29, 0, 11, 1), "test": (49, 33, 72, 51, 71)}
    return Entry(
        name="cifar100",
        title="CIFAR-100, small photographs, 32x32 RGB, 100 classes in 20 groups",
        format="cifar",
        files=(Remote("cifar-100-binary.tar.gz", "03b5dce01913d631647c71ecec9e9cb8", 168_513_733),),
        urls=("https://www.cs.toronto.edu/~kriz/",),
        counts={"train": 50_000, "test": 10_000},
        classes=100,
        license="unknown",
        license_text="No license text is published with the files; the authors ask to be cited.",
        commercial=False,
        citation="A. Krizhevsky: Learning multiple layers of features from tiny images. Technical report, 2009.",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        source="the authors' page (MD5 of the binary version)",
        tables=(
            Table(f"{_FOLDER}/train.bin", 0, 3074, 50_000, 1, first["train"]),
            Table(f"{_FOLDER}/test.bin", 0, 3074, 10_000, 1, first["test"]),
        ),
        unpack=tuple(
            f"{_FOLDER}/{name}" for name in ("train.bin", "test.bin", "fine_label_names.txt", "coarse_label_names.txt")
        ),
        notes="Every record is the coarse label, the fine label, then color planes (3, 32, 32).",
    )
