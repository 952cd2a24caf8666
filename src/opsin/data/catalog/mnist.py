"""MNIST: handwritten digits (LeCun, Cortes, Burges)."""

from __future__ import annotations

from opsin.data.entries import Entry, Remote, idx_tables

NAMES = ("mnist",)


def mnist() -> Entry:
    """70,000 digits, 28x28 gray."""
    counts = {"train": 60_000, "test": 10_000}
    first = {"train": (5, 0, 4, 1, 9, 2, 1, 3, 1, 4), "test": (7, 2, 1, 0, 4, 1, 4, 9, 5, 9)}
    return Entry(
        name="mnist",
        title="MNIST handwritten digits, 28x28 gray, 10 classes",
        format="idx",
        files=(
            Remote("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", 9_912_422),
            Remote("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", 28_881),
            Remote("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", 1_648_877),
            Remote("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", 4_542),
        ),
        urls=("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
        counts=counts,
        classes=10,
        license="unknown",
        license_text="The authors publish no license text with the files; the copyright is theirs (Y. LeCun, "
        "C. Cortes).",
        commercial=False,
        citation="Y. LeCun, L. Bottou, Y. Bengio, P. Haffner: Gradient-based learning applied to document recognition. "
        "Proceedings of the IEEE 86(11), 1998.",
        homepage="http://yann.lecun.com/exdb/mnist/",
        source="torchvision.datasets.MNIST (mirrors, resources)",
        tables=idx_tables(counts, {"train": "train", "test": "t10k"}, first),
    )
