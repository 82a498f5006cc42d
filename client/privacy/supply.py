"""What a private step is fed with: each drawn unit, made ready alone."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from client.data.augment import augment
from client.data.batches import Rows, SiteData, group_units
from client.learning.unlabelled import Follower, Lesson, joined_lessons, lacks, may_follow
from client.privacy.material import Material, those_there
from client.privacy.random import SecureRandom
from client.privacy.sampling import capped, poisson
from client.settings import SiteSettings
from common.findings import FINDINGS
from common.model import MultitaskModel
from common.plan import Plan


def declared_findings(settings: SiteSettings) -> npt.NDArray[np.bool_]:
    """Which findings the site says that it annotates, (14,) bool: its word, not its data."""
    return np.array([finding in settings.annotates for finding in FINDINGS])


class Supply:
    """Draws the units of each step and makes each ready, alone.

    Everything that is random about a unit is seeded by the kernel, for each unit anew. With a
    seed that others know, or one for several units, one unit more in a step would change in a
    known way what is drawn for the units after it.
    """

    def __init__(
        self,
        model: MultitaskModel,
        data: SiteData,
        plan: Plan,
        settings: SiteSettings,
        random: SecureRandom,
    ) -> None:
        self._model, self._data, self._plan, self._random = model, data, plan, random
        self._most = settings.physical_batch
        self._units = group_units(data, data.rows("train"), plan.privacy.unit)
        self._generator = torch.Generator()
        self._what = may_follow(plan, declared_findings(settings), settings.outlines_lungs)
        self._follower: Follower | None = None
        if plan.semi_supervision.mode != "off":
            self._follower = Follower(
                model, data, plan, self._what, None, random.seed(), precise=True
            )

    def step(self, rate: float) -> Iterator[Material]:
        """The units of one step, one after the other; none at all when none was drawn."""
        chosen = poisson(len(self._units), rate, self._random)
        most = self._plan.privacy.images_per_unit
        for number in chosen.tolist():
            yield self._material(capped(self._units[number], most, self._random))

    def follow(self) -> None:
        """Let the teacher follow the student, after a step. Both are noised: it costs nothing."""
        if self._follower is not None:
            self._follower.teacher.follow(self._model)

    def _material(self, rows: Rows) -> Material:
        self._generator.manual_seed(self._random.seed())
        repeated = np.repeat(rows, self._plan.privacy.views)
        batch = self._data.batch(repeated, np.zeros_like(repeated))
        batch.images, batch.masks = augment(
            batch.images, batch.masks, batch.lung_rows, self._plan.training.augment, self._generator
        )
        planes = bridge_in_parts(self._model, batch.images[batch.lung_rows], self._most)
        material = Material(batch, planes)
        lesson = self._lesson(rows)
        if lesson is not None:
            # Plain NCHW, whatever the device likes: see client/learning/resident.py.
            material.strong = lesson.strong.clone(memory_format=torch.contiguous_format)
            material.targets, material.strong_planes = lesson.targets, lesson.planes
        return material

    def _lesson(self, rows: Rows) -> Lesson | None:
        """About a unit's rows that lack something, as many at a time as the memory takes."""
        lacking = rows[lacks(self._data, rows, self._what)]
        if self._follower is None or len(lacking) == 0:
            return None
        self._follower.seed(self._random.seed())
        lessons = []
        for start in range(0, len(lacking), self._most):
            some = lacking[start : start + self._most]
            lessons.append(self._follower.lesson(some, np.zeros_like(some), 1))
        return lessons[0] if len(lessons) == 1 else joined_lessons(lessons)


def bridge_in_parts(model: MultitaskModel, images: Tensor, most: int) -> Tensor | None:
    """What crosses the bridge for images (M, 1, S, S), at most `most` at a time.

    (M, 2, S, S), or None without a bridge or an image.
    """
    return those_there([model.planes(some) for some in torch.split(images, most)])
