"""TFRecord against TensorFlow: a file that it wrote is read, and it reads what opsin writes.

The second test runs in a Python with TensorFlow: this one, or the one that OPSIN_TEST_TENSORFLOW names.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from opsin.data import load_data
from opsin.data.formats import format_module
from opsin.data.records import crc32c, framed, masked_crc
from opsin.errors import DataError

MADE = Path(__file__).parents[1] / "data" / "tfrecord"

READ = """
import json, sys
import tensorflow as tf
wanted = {"image/filename": tf.io.FixedLenFeature([], tf.string), "image/encoded": tf.io.FixedLenFeature([], tf.string)}
wanted |= {f"image/{k}": tf.io.FixedLenFeature([], tf.int64) for k in ("height", "width")}
wanted |= {f"image/object/bbox/{c}": tf.io.VarLenFeature(tf.float32) for c in ("xmin", "ymin", "xmax", "ymax")}
wanted |= {"image/object/class/text": tf.io.VarLenFeature(tf.string)}
wanted |= {f"image/object/{k}": tf.io.VarLenFeature(tf.int64) for k in ("class/label", "difficult", "is_crowd")}
said = []
for record in tf.data.TFRecordDataset(sys.argv[1]):
    one = tf.io.parse_single_example(record, wanted)
    lists = {k: tf.sparse.to_dense(v).numpy() for k, v in one.items() if isinstance(v, tf.sparse.SparseTensor)}
    said.append({
        "name": one["image/filename"].numpy().decode(),
        "size": [int(one["image/height"]), int(one["image/width"])],
        "decoded": list(tf.io.decode_image(one["image/encoded"]).shape),
        "boxes": [lists[f"image/object/bbox/{c}"].tolist() for c in ("xmin", "ymin", "xmax", "ymax")],
        "names": [word.decode() for word in lists["image/object/class/text"]],
        "labels": lists["image/object/class/label"].tolist(),
        "difficult": lists["image/object/difficult"].tolist(),
    })
print("SAID " + json.dumps(said))
"""


def test_crc_of_rfc_3720() -> None:
    """The examples of RFC 3720, appendix B.4, and the check value of the algorithm."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"") == 0


@pytest.mark.parametrize("size", [1, 255, 256, 257, 511, 512, 513, 1300, 8192, 8193, 70001])
def test_crc_is_that_of_tensorboard(size: int) -> None:
    stub = pytest.importorskip("tensorboard.compat.tensorflow_stub.pywrap_tensorflow")
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert crc32c(data) == stub.crc32c(data)
    assert masked_crc(data) == stub.masked_crc32c(data)


def test_a_file_of_tensorflow_is_read() -> None:
    data = load_data(MADE)
    said = json.loads((MADE / "two.json").read_text())
    assert data.format == "tfrecord"
    assert data.heads[0].class_names == ("bee", "ant")  # in the order of the label map's ids, which have a hole
    assert list(data.ids) == [one["picture"] for one in said]
    for i, one in enumerate(said):
        objects = data.targets["objects"][i]
        assert list(data[i].image.shape) == [3, *one["size"]]
        assert np.allclose(objects.boxes_xyxy, np.array(one["boxes"]).reshape(-1, 4), atol=1e-4)
        assert [data.heads[0].class_names[k] for k in objects.labels] == one["names"]
    assert data.targets["objects"][0].difficult.tolist() == [True, False, False]
    assert not data.problems


def test_pictures_have_the_marks_of_files(tmp_path: Path) -> None:
    """So that a data set is the same inside records and as files."""
    data = load_data(MADE)
    format_module("coco").write(data, tmp_path / "coco")
    assert load_data(tmp_path / "coco").fingerprint == data.fingerprint


def _tensorflow() -> str:
    if named := os.environ.get("OPSIN_TEST_TENSORFLOW"):
        return named
    if importlib.util.find_spec("tensorflow") is not None:
        return sys.executable
    pytest.skip("tensorflow is not installed; set OPSIN_TEST_TENSORFLOW to a Python that has it")


def test_tensorflow_reads_what_is_written(tmp_path: Path) -> None:
    python = _tensorflow()
    data = load_data(MADE)
    format_module("tfrecord").write(data, tmp_path / "out")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    ran = subprocess.run(
        [python, "-c", READ, str(tmp_path / "out" / "data.tfrecord")], capture_output=True, text=True, env=environment
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    said = json.loads(next(line for line in ran.stdout.splitlines() if line.startswith("SAID ")).removeprefix("SAID "))
    assert [one["name"] for one in said] == list(data.ids)
    for i, one in enumerate(said):
        objects = data.targets["objects"][i]
        height, width = one["size"]
        assert one["decoded"] == [height, width, 3]
        boxes = np.array(one["boxes"]).T.reshape(-1, 4) * [width, height, width, height]
        assert np.allclose(boxes, objects.boxes_xyxy, atol=1e-4)
        assert one["names"] == [data.heads[0].class_names[k] for k in objects.labels]
        assert one["labels"] == (objects.labels + 1).tolist()
        assert one["difficult"] == objects.difficult.astype(int).tolist()


def test_damage_is_found(tmp_path: Path) -> None:
    whole = (MADE / "two.tfrecord").read_bytes()
    for name, content, message in (
        (
            "flipped",
            whole[:200] + bytes([whole[200] ^ 1]) + whole[201:],
            r"two.tfrecord, record 0 \(byte 0\): its CRC is wrong",
        ),
        ("cut", whole[:-3], r"record 1 .*the file is cut off"),
        ("length", whole + b"\1" * 12, r"record 2 .*the CRC of its length is wrong"),
        ("other", whole + framed(b"\x0a\xff"), r"record 2: not a tf.train.Example"),
        ("gzip", b"\x1f\x8b" + whole, "compressed TFRecord"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "two.tfrecord").write_bytes(content)
        with pytest.raises(DataError, match=message):
            load_data(folder, "tfrecord")
