"""COCO JSON annotations: recognized, so that their folders of pictures are not taken for classes."""

from __future__ import annotations

from opsin.data.layout import suffix
from opsin.data.places import NO, Place, Verdict

NAMES = ("coco",)
REFUSAL = (
    "this is a COCO data set (boxes, outlines, keypoints or captions in JSON), which cannot be read as whole-picture "
    "labels. "
    "For `opsin train classify` give class folders or a table; to use only its pictures, give their folder with "
    "--format flat."
)


def sniff(place: Place) -> Verdict:
    """A JSON object with a list of images, and annotations or categories."""
    names = [place.focus] if place.focus else [n for n in place.names if suffix(n) == ".json"][:20]
    for name in names:
        if suffix(name) != ".json":
            continue
        head = place.head(name, 1 << 16).lstrip(b"\xef\xbb\xbf \r\n\t")
        keys = [k for k in (b'"images"', b'"annotations"', b'"categories"', b'"info"', b'"licenses"') if k in head]
        large = b'"file_name"' in head or b'"bbox"' in head or b'"segmentation"' in head
        if head.startswith(b"{") and keys and (len(keys) > 1 or large):
            return Verdict(0.95, f"the COCO annotations {name}")
    return NO
