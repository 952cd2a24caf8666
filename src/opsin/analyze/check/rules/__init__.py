"""The single checks. A file joins by itself: `NAMES = ("name",)` and `build(scan) -> Iterator[Finding]`."""
