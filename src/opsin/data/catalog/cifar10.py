"""CIFAR-10: small color photographs (Krizhevsky), the binary version, which holds no pickles."""

from __future__ import annotations

from opsin.data.entries import Entry, Remote, Table

NAMES = ("cifar10",)

_FOLDER = "cifar-10-batches-bin"


def cifar10() -> Entry:
    """60,000 pictures, 32x32 RGB."""
    train = tuple(f"{_FOLDER}/data_batch_{i}.bin" for i in range(1, 6))
    first = {train[0]: (6, 9, 9, 4, 1, 1, 2, 7, 8, 3), f"{_FOLDER}/test_batch.bin": (3, 8, 8, 0, 6, 6, 1, 6, 3, 1)}
    return Entry(
        name="cifar10",
        title="CIFAR-10, small photographs, 32x32 RGB, 10 classes",
        format="cifar",
        files=(Remote("cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171),),
        urls=("https://www.cs.toronto.edu/~kriz/",),
        counts={"train": 50_000, "test": 10_000},
        classes=10,
        license="unknown",
        license_text="No license text is published with the files; the authors ask to be cited.",
        commercial=False,
        citation="A. Krizhevsky: Learning multiple layers of features from tiny images. Technical report, 2009.",
        homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
        source="the authors' page (MD5 of the binary version)",
        tables=tuple(
            Table(path, 0, 3073, 10_000, 0, first.get(path, ())) for path in (*train, f"{_FOLDER}/test_batch.bin")
        ),
        unpack=(*train, f"{_FOLDER}/test_batch.bin", f"{_FOLDER}/batches.meta.txt", f"{_FOLDER}/readme.html"),
        notes="Pixels are stored as color planes (3, 32, 32).",
    )
