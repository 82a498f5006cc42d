"""What every section of a plan is. Imports neither torch nor Flower."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the plan: immutable, no unknown keys, no silent conversion, finite numbers.

    Every number has a lower and an upper limit, and every text and list a greatest length, for a
    plan is the word of a coordinator that nobody has to trust; a test walks over all of them.
    The limits leave room for any real study, and none for what overflows or never ends.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
