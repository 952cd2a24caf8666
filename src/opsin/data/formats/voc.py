"""Pascal VOC XML annotations: recognized, so that their folders of pictures are not taken for classes."""

from __future__ import annotations

from opsin.data.layout import suffix
from opsin.data.places import NO, Place, Verdict

NAMES = ("voc",)
REFUSAL = (
    "this is a Pascal VOC data set (boxes in XML files), which cannot be read as whole-picture labels. "
    "For `opsin train classify` give class folders or a table; to use only its pictures, give their folder with "
    "--format flat."
)


def sniff(place: Place) -> Verdict:
    """XML files that hold an `annotation`."""
    if place.focus:
        return NO
    files = [n for n in place.names if suffix(n) == ".xml"]
    if any(b"<annotation" in place.head(name, 4096) for name in files[:5]):
        return Verdict(0.95, f"{len(files)} Pascal VOC annotations, e.g. {files[0]}")
    return NO
