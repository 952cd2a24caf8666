"""Make a trained run one of the models that come with the package: weights in half precision, pictures, license, where from.

python benchmarks/ship.py RUN blood-cells --data bccd --pictures BloodImage_00007 BloodImage_00011 BloodImage_00016

The pictures are copied with their annotations as a VOC data set, and the bundle is judged anew, as it is shipped, on the test
part that the run has looked at already (results/shipped-NAME.json).
"""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path

import numpy as np
from recorded import record

import opsin
from opsin.data.formats import format_module, load_data
from opsin.models import shipped
from opsin.run import Run
from opsin.run.evaluating import evaluate_bundle

ROOM = Path(shipped.__file__).parent


def main() -> None:
    """Read the command line, write the folder, judge it."""
    words = argparse.ArgumentParser(description=__doc__)
    words.add_argument("run")
    words.add_argument("name")
    words.add_argument("--data", required=True)
    words.add_argument("--pictures", nargs="+", required=True, help="stems of pictures of the test part")
    given = words.parse_args()
    run, data = Run(given.run), load_data(given.data, skip_bad=True)
    folder = ROOM / given.name.replace("-", "_")
    readme = (folder / "README.md").read_text(encoding="utf-8")
    shutil.rmtree(folder)
    bundle = run.bundle
    bundle.info["license"] = "MIT"
    bundle.save(folder, half=True)
    (folder / "README.md").write_text(readme, encoding="utf-8")
    chosen = [i for i in range(len(data)) if Path(data.id(i)).stem in given.pictures]
    format_module("voc").write(data.select(np.array(chosen)), folder / "pictures")
    size = (folder / "weights.safetensors").stat().st_size
    test = data.select(np.isin(list(data.ids), list(run.data.split.ids_of("test"))))
    found = evaluate_bundle(opsin.load(given.name), test, name=given.name)
    values = {
        "metrics": {name: found["metrics"][name] for name in ("map50", "map")},
        "bytes": size,
        "parameters": sum(p.numel() for p in bundle.model.parameters()),
        "samples": found["samples"],
    }
    command = f"python benchmarks/ship.py RUN {given.name} --data {Path(given.data).name} --pictures {' '.join(given.pictures)}"
    record(f"shipped-{given.name}", values, command)
    print(values)


if __name__ == "__main__":
    main()
