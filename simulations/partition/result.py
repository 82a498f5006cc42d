"""What the partitioner returns, and the seeded streams that its steps draw from."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from common.errors import Problem
from common.simulated import PartitionPlan

# One stream a step: a change of one setting then leaves the draws of the other steps alone.
STREAMS = ("strata", "shares", "pool", "test", "carve", "sizes", "val", "labels", "findings")


@dataclass(frozen=True)
class Partition:
    """Hospitals cut from one table. Every image is in exactly one of the frames below.

    sites: hospital name -> DataFrame(image, patient, split "train"|"val", labelled bool: may
        the findings of this row be used for that split);
    annotates: hospital name -> the findings that it annotates, in the order of FINDINGS;
    test: DataFrame(image, patient, site), the global test. `site` is the hospital to whose
        population the patient belongs by the same rule, "" when it belongs to none;
    left_out: DataFrame(image, patient, reason), images that no hospital got.
    """

    sites: dict[str, pd.DataFrame]
    annotates: dict[str, tuple[str, ...]]
    test: pd.DataFrame
    left_out: pd.DataFrame
    spec: PartitionPlan
    seed: int
    table: pd.DataFrame = field(repr=False)


def stream(seed: int, step: str) -> np.random.Generator:
    """The random stream of one step (one of STREAMS): the same seed draws the same numbers."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(STREAMS.index(step),)))


def cannot(key: str, found: str, allowed: str, next_step: str) -> Problem:
    """A request that cannot be met, named by its key under `simulation` in the plan."""
    return Problem("partition", f"key 'simulation.{key}'", found, allowed, next_step)
