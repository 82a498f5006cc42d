"""How much of an average each site has: in proportion to its weight, up to a cap."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt


def capped_shares(weights: Sequence[float], most: float) -> npt.NDArray[np.float64]:
    """The sites' shares of an average, (K,) float64 that add up to 1, none above `most`.

    weights: K numbers > 0, a site's own word. most: in (0, 1]. What a capped site gives up goes to
    the others in proportion to their weights. With so few sites that the cap can't be met
    (K x most <= 1) all shares are equal.
    """
    given = np.asarray(weights, np.float64)
    if len(given) * most <= 1.0:
        return np.full(len(given), 1.0 / len(given))
    shares: npt.NDArray[np.float64] = given / given.sum()
    held = np.zeros(len(given), bool)
    # Ends, and never with all held: those above the cap are fewer than 1 / most.
    while (above := ~held & (shares > most)).any():
        held |= above
        left = 1.0 - most * held.sum()
        shares = np.where(held, most, given * left / given[~held].sum())
    return shares
