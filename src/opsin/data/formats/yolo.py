"""YOLO text labels (`images/` beside `labels/*.txt`, or a data.yaml): recognized, so that it is not taken for class
folders."""

from __future__ import annotations

from opsin.data.layout import suffix
from opsin.data.places import NO, Place, Verdict

NAMES = ("yolo",)
REFUSAL = (
    "this is a YOLO data set for detection (pictures with text files of boxes or outlines), which cannot be read as "
    "whole-picture "
    "labels. For `opsin train classify` give class folders or a table; to use only its pictures, give the images "
    "folder with --format flat."
)


def sniff(place: Place) -> Verdict:
    """A folder called labels that holds text files, or a data.yaml with names beside pictures."""
    if place.focus:
        return NO
    texts = [n for n in place.names if suffix(n) == ".txt" and "labels" in n.lower().split("/")[:-1]]
    if texts:
        return Verdict(0.95, f"{len(texts)} YOLO label files, e.g. {texts[0]}")
    for name in place.names:
        if name.rpartition("/")[2] in ("data.yaml", "data.yml", "dataset.yaml") and b"names" in place.head(name):
            return Verdict(0.95, f"the YOLO description {name}")
    return NO
