"""Parameters and multiply-adds of every detector, from hollow networks: no weights, no picture, any machine.

    python benchmarks/detector_costs.py [--image-size 640] [--classes 80] [--models NAME ...] [--record]

Each network is asked as a user of COCO would: 80 classes, 640 x 640. Multiply-adds are those of forward and decode for one
picture; a network whose work depends on what it sees (two stages with merging between them) has no such number.
"""

from __future__ import annotations

import argparse
from typing import Any

from recorded import record

from opsin.analyze.cost import build_hollow, cost
from opsin.errors import OpsinError
from opsin.models import ModelSpec, answer_of, models


def cost_of(name: str, side: int, classes: int) -> dict[str, Any]:
    """Parameters, multiply-adds (None if they depend on the picture) and whether boxes have to be merged."""
    network = build_hollow(ModelSpec(name, {}, 3, classes, (side, side), answer="detected"))
    try:
        macs = cost(network, (3, side, side)).total("macs")
    except (OpsinError, RuntimeError) as error:
        print(f"{name}: {error}", flush=True)
        macs = None
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "macs": macs, "merged": network.overlap < 1}


def main() -> None:
    """Read the command line, count, store."""
    known = [name for name in models if answer_of(name) == "detected"]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=640)
    parser.add_argument("--classes", type=int, default=80)
    parser.add_argument("--models", nargs="+", choices=known, default=known)
    parser.add_argument("--record", action="store_true", help="store it under results/")
    given = parser.parse_args()
    found = {}
    for name in given.models:
        found[name] = cost_of(name, given.image_size, given.classes)
        print(name, found[name], flush=True)
    if given.record:
        command = (
            f"python benchmarks/detector_costs.py --image-size {given.image_size} --classes {given.classes} --record"
        )
        record(
            "detector-costs",
            {"image_size": given.image_size, "classes": given.classes, "detector_costs": found},
            command,
        )


if __name__ == "__main__":
    main()
