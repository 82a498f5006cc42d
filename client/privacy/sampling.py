"""Which units take part in a private step, and with which of their images.

Every unit is drawn on its own with the same public probability (Poisson sampling), which is
what the accountant assumes: shuffled batches accounted as Poisson ones are unsound (Chua et
al., arXiv 2403.17673). A unit is drawn once a step, with all its labels, masks and unannotated
images, so that it is clipped once.
"""

import numpy as np

from client.data.batches import Rows
from client.privacy.random import SecureRandom


def poisson(units: int, rate: float, random: SecureRandom) -> Rows:
    """The units drawn for one step, (U,) int64 in [0, units), each with probability `rate`."""
    return np.flatnonzero(random.uniform(units).numpy() < rate).astype(np.int64)


def capped(unit: Rows, most: int, random: SecureRandom) -> Rows:
    """At most `most` of a unit's rows, drawn at random anew in every step.

    The cap is public, and what is drawn for one unit depends on that unit alone.
    """
    if len(unit) <= most:
        return unit
    order = np.argsort(random.uniform(len(unit)).numpy(), kind="stable")
    return np.sort(unit[order[:most]])
