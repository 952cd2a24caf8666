"""Makes `two.tfrecord` and `two.json` beside it, with TensorFlow's own writer: run once with tensorflow-cpu 2.21.

    python tests/data/tfrecord/make.py

Two pictures of noise, with three boxes and with none; the JSON says what was put in, for comparison.
"""

import io
import json
from pathlib import Path

import numpy as np
import tensorflow as tf
from PIL import Image

HERE = Path(__file__).parent
BOXES = [[[2.0, 3.0, 20.5, 15.0], [0.0, 0.0, 40.0, 24.0], [10.25, 5.5, 11.5, 20.0]], []]
NAMES = [["ant", "bee", "ant"], []]


def main() -> None:
    rng = np.random.default_rng(4)
    ids = {"bee": 1, "ant": 3}
    said = []
    with tf.io.TFRecordWriter(str(HERE / "two.tfrecord")) as writer:
        for i, (boxes, names) in enumerate(zip(BOXES, NAMES)):
            height, width = (24, 40) if i == 0 else (31, 17)
            file = io.BytesIO()
            Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).save(file, "PNG")
            corners = np.array(boxes, np.float64).reshape(-1, 4) / [width, height, width, height]
            lists = {
                "image/height": tf.train.Feature(int64_list=tf.train.Int64List(value=[height])),
                "image/width": tf.train.Feature(int64_list=tf.train.Int64List(value=[width])),
                "image/filename": tf.train.Feature(bytes_list=tf.train.BytesList(value=[f"pictures/{i}.png".encode()])),
                "image/encoded": tf.train.Feature(bytes_list=tf.train.BytesList(value=[file.getvalue()])),
                "image/format": tf.train.Feature(bytes_list=tf.train.BytesList(value=[b"png"])),
                "image/object/class/text": tf.train.Feature(
                    bytes_list=tf.train.BytesList(value=[name.encode() for name in names])
                ),
                "image/object/class/label": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[ids[name] for name in names])
                ),
                "image/object/is_crowd": tf.train.Feature(int64_list=tf.train.Int64List(value=[0] * len(names))),
                "image/object/difficult": tf.train.Feature(
                    int64_list=tf.train.Int64List(value=[1, 0, 0][: len(names)])
                ),
            }
            for k, corner in enumerate(("xmin", "ymin", "xmax", "ymax")):
                lists[f"image/object/bbox/{corner}"] = tf.train.Feature(
                    float_list=tf.train.FloatList(value=corners[:, k].tolist())
                )
            writer.write(tf.train.Example(features=tf.train.Features(feature=lists)).SerializeToString())
            said.append({"picture": f"pictures/{i}.png", "size": [height, width], "boxes": boxes, "names": names})
    (HERE / "two.json").write_text(json.dumps(said, indent=1) + "\n", encoding="utf-8")
    (HERE / "label_map.pbtxt").write_text('item {\n  id: 1\n  name: "bee"\n}\nitem {\n  id: 3\n  name: "ant"\n}\n')


if __name__ == "__main__":
    main()
