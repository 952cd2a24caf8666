"""How often pictures come in an epoch, so that rare classes are seen; for `TrainLoader(weights=...)`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from opsin.data.objects import ObjectColumn


def repeat_factors(column: ObjectColumn, num_classes: int, threshold: float = 0.1) -> NDArray[np.float64]:
    """Repeat factors of pictures (Gupta, Dollar, Girshick, "LVIS", 2019, section 5.3), (N,), each at least 1.

    A class that is in a share f of the pictures has the factor max(1, sqrt(threshold / f)); a picture has the largest
    factor of its classes, 1 without objects.

    Args:
        column: the objects of N pictures.
        num_classes: number of classes.
        threshold: classes in fewer pictures than this share are repeated; the paper's 0.001 is for 1,203 classes.
    """
    present = column.present(num_classes)  # (N, K)
    share = present.mean(0) if len(column) else np.zeros(num_classes)
    factors = np.maximum(1.0, np.sqrt(threshold / np.maximum(share, 1e-12)))  # (K,)
    return np.asarray(np.where(present, factors, 1.0).max(axis=1, initial=1.0))
