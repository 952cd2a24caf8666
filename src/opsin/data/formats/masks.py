"""Pictures with mask pictures (semantic segmentation): recognized, so that `images` and `masks` do not become
classes."""

from __future__ import annotations

from collections import defaultdict

from opsin.data.layout import is_picture
from opsin.data.places import NO, Place, Verdict

NAMES = ("masks",)
REFUSAL = (
    "this is a data set for segmentation (pictures and mask pictures in folders side by side), which cannot be read "
    "as whole-picture "
    "labels. For `opsin train classify` give class folders or a table; to use only its pictures, give their folder "
    "with --format flat."
)

_PICTURES = frozenset(["images", "image", "imgs", "img", "jpegimages", "leftimg8bit"])
_MASKS = (
    "masks",
    "mask",
    "labels",
    "label",
    "annot",
    "annotations",
    "annotation",
    "segmentation",
    "segmentationclass",
    "gt",
    "gtfine",
)


def sniff(place: Place) -> Verdict:
    """Two folders side by side, one named like masks, with the same file names or named like pictures and masks."""
    if place.focus:
        return NO
    stems: dict[str, set[str]] = defaultdict(set)
    for name in place.names:
        if is_picture(name):
            folder, _, last = name.rpartition("/")
            stems[folder].add(last.rpartition(".")[0])
    siblings: dict[str, list[str]] = defaultdict(list)
    for folder in stems:
        parent, _, last = folder.rpartition("/")
        siblings[parent].append(last)
    for parent, folders in siblings.items():
        base = f"{parent}/" if parent else ""
        for mask in folders:
            word = next((w for w in _MASKS if mask.lower().endswith(w)), None)
            for image in folders if word else ():
                if image == mask:
                    continue
                a, b = stems[base + image], stems[base + mask]
                shared = len(a & b) >= 0.8 * min(len(a), len(b)) and min(len(a), len(b)) >= 1
                named = image.lower() in _PICTURES and mask.lower() in _MASKS
                if named or (
                    shared
                    and (
                        mask.lower() in _MASKS
                        or mask.lower() == image.lower() + (word or "")
                        or mask.lower().startswith(image.lower())
                    )
                ):
                    return Verdict(0.95, f"pictures in {base}{image} with masks in {base}{mask}")
    return NO
