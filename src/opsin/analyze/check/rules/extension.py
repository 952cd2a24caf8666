"""Files whose name promises another format than they hold."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from opsin.analyze.check.findings import Finding, of_all
from opsin.analyze.check.scan import Scan

NAMES = ("extension",)

_SUFFIXES = {
    "JPEG": "jpg jpeg jpe jfif",
    "MPO": "jpg jpeg mpo",
    "PNG": "png apng",
    "WEBP": "webp",
    "TIFF": "tif tiff",
    "BMP": "bmp dib",
    "DIB": "bmp dib",
    "GIF": "gif",
    "PPM": "pgm ppm pbm pnm pfm",
    "JPEG2000": "jp2 j2k jpx j2c jpf jpc",
    "AVIF": "avif",
    "ICO": "ico",
    "TGA": "tga",
    "PCX": "pcx",
    "QOI": "qoi",
    "SGI": "sgi rgb bw rgba",
}


def build(scan: Scan) -> Iterator[Finding]:
    """Code `wrong-extension`."""
    wrong = []
    for i in np.flatnonzero(scan.facts.formats != "").tolist():
        name = scan.dataset.id(i).rpartition("/")[2].partition("#")[0]
        ending = name.rpartition(".")[2].lower() if "." in name else ""
        if ending and ending not in _SUFFIXES.get(str(scan.facts.formats[i]), ending).split():
            wrong.append((i, ending))
    if not wrong:
        return
    first, ending = wrong[0]
    held = str(scan.facts.formats[first])
    listed = wrong[: scan.options.listed]
    yield Finding(
        "wrong-extension",
        "warning",
        f"{of_all(len(wrong), len(scan), 'file', 'holds', 'hold')} another format than the name says: "
        f"{scan.dataset.id(first)} is a {held} file. opsin reads them by content; other tools may not.",
        tuple((scan.dataset.id(i),) for i, _ in listed),
        f"Rename them (.{ending} to .{_SUFFIXES[held].split()[0]}), or save them again in the format of their name.",
        tuple(f"named .{end}, holds {scan.facts.formats[i]}" for i, end in listed),
        {"count": len(wrong), "groups": len(wrong)},
    )
