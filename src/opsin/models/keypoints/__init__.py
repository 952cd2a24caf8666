"""Keypoint networks, one family per file: the picture of one object to its points (`opsin.models.Located`)."""
