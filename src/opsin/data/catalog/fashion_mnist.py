"""Fashion-MNIST: pictures of clothes in the form of MNIST (Zalando)."""

from __future__ import annotations

from opsin.data.entries import Entry, Remote, idx_tables

NAMES = ("fashion-mnist",)


def fashion_mnist() -> Entry:
    """70,000 pieces of clothing, 28x28 gray."""
    counts = {"train": 60_000, "test": 10_000}
    first = {"train": (9, 0, 0, 3, 0, 2, 7, 2, 5, 5), "test": (9, 2, 1, 1, 6, 1, 4, 6, 5, 7)}
    return Entry(
        name="fashion-mnist",
        title="Fashion-MNIST, clothes, 28x28 gray, 10 classes",
        format="idx",
        files=(
            Remote("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", 26_421_880),
            Remote("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", 29_515),
            Remote("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", 4_422_102),
            Remote("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", 5_148),
        ),
        urls=(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
            "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",
        ),
        counts=counts,
        classes=10,
        license="MIT",
        license_text="MIT License, Copyright (c) 2017 Zalando SE, https://tech.zalando.com",
        commercial=True,
        citation="H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST: a novel image dataset for benchmarking machine "
        "learning algorithms. arXiv:1708.07747, 2017.",
        homepage="https://github.com/zalandoresearch/fashion-mnist",
        source="torchvision.datasets.FashionMNIST (mirrors, resources); sizes from the published files",
        tables=idx_tables(counts, {"train": "train", "test": "t10k"}, first),
        notes="Class names in order: T-shirt/top, Trouser, Pullover, Dress, Coat, Sandal, Shirt, Sneaker, Bag, "
        "Ankle boot.",
    )
