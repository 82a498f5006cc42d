"""What a site folder says about itself: `site.yaml`, and the rows of the cache that it owns."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from client.policy import Policy
from common.errors import DataError, Problem
from common.findings import FINDINGS, LUNGS
from common.yaml_file import read_mapping

SITE_FILE = "site.yaml"
SPLITS = ("train", "val", "test")
EngineName = Literal["auto", "loop", "opacus", "vmap"]


class SiteSettings(BaseModel):
    """`site.yaml`. Paths are relative to the site folder unless absolute."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(pattern=r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$")
    cache: Path
    rows: Path = Path("rows.parquet")
    annotates: tuple[str, ...] = FINDINGS
    outlines_lungs: bool = Field(True, description="the site has lung masks: a public word")
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$")
    nominal_units: int | None = Field(
        None, ge=1, description="about how many training patients (or images): a public word"
    )
    engine: EngineName = Field(
        "auto", description="how gradients per unit are worked out; auto: by device"
    )
    physical_batch: int = Field(32, ge=1, description="images in memory at once, private training")
    ledger: Path = Path("ledger.sqlite")
    policy: Policy = Policy()
    serving_head_epochs: int = Field(
        0,
        ge=0,
        le=1000,
        description="passes in which heads for use inside the site are fitted, without noise, "
        "after a private plan; the site's wish, whatever the plan says",
    )
    simulated: bool = Field(False, description="a what-if hospital: its ledger protects nobody")

    @property
    def declares(self) -> tuple[str, ...]:
        """What the site says that it annotates: findings, and "lungs". It tells no row's labels."""
        return (*self.annotates, *((LUNGS,) if self.outlines_lungs else ()))

    @field_validator("name")
    @classmethod
    def _name_of_a_site(cls, name: str) -> str:
        if name.startswith("node-"):
            raise ValueError(
                "a name that does not begin with node-: so the coordinator calls nodes that have "
                "not said their name, and it takes no site that is called so"
            )
        return name

    @field_validator("annotates")
    @classmethod
    def _known_findings(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in FINDINGS]
        if unknown:
            raise ValueError(f"findings among {', '.join(FINDINGS)}; not {', '.join(unknown)}")
        return names

    @model_validator(mode="after")
    def _has_a_deadline(self) -> "SiteSettings":
        if self.policy.epsilon is not None and self.policy.deadline is None and not self.simulated:
            raise ValueError(
                "policy.deadline in seconds, as policy.epsilon is set: answers to private plans "
                "leave at a public time. Set it to a little more than a round takes"
            )
        return self


@dataclass(frozen=True)
class SiteFolder:
    """A hospital as a folder: settings and the places where things lie."""

    path: Path
    settings: SiteSettings

    @property
    def cache(self) -> Path:
        """Folder of the decoded cache, which several sites may share."""
        return self.path / self.settings.cache

    @property
    def state(self) -> Path:
        """Folder of local heads and optimizer state. Never leaves the site."""
        return self.path / "state"

    @property
    def reports(self) -> Path:
        """Folder of reports and of the site's own log."""
        return self.path / "reports"

    def rows(self) -> pd.DataFrame:
        """The site's rows: image (str), split (train/val/test), labelled (bool).

        Raises DataError when the file is missing, misses a column, or has another split.
        """
        file = self.path / self.settings.rows
        try:
            rows = pd.read_parquet(file)
        except (OSError, ValueError) as error:
            reason = "nothing" if isinstance(error, FileNotFoundError) else str(error)
            raise DataError(
                Problem(str(file), "", reason, "a Parquet table of rows", "Partition the data.")
            ) from None
        missing = [name for name in ("image", "split", "labelled") if name not in rows]
        if missing:
            found, allowed = f"no column {missing[0]!r}", "columns image, split, labelled"
            raise DataError(Problem(str(file), "", found, allowed, "Partition the data again."))
        strange = rows.loc[~rows["split"].isin(SPLITS), "split"]
        if len(strange):
            at = f"row {strange.index[0] + 1}, column 'split'"
            allowed = ", ".join(SPLITS)
            raise DataError(Problem(str(file), at, repr(strange.iloc[0]), allowed, "Mend the row."))
        return rows


def open_site_folder(path: Path) -> SiteFolder:
    """Read a site folder's `site.yaml`. Raises DataError with every mistake in it."""
    file = path / SITE_FILE
    step = "Check the site folder; a site.yaml has at least name and cache."
    raw = read_mapping(file, "site settings", DataError, step)
    try:
        return SiteFolder(path, SiteSettings.model_validate(raw))
    except ValidationError as error:
        raise DataError(
            Problem(
                str(file),
                # What belongs to no single key is the deadline, which another key asks for.
                f"key {'.'.join(map(str, detail['loc'])) or 'policy.deadline'!r}",
                repr(detail["input"]) if detail["loc"] else "nothing",
                detail["msg"].removeprefix("Value error, "),
                "Mend the settings.",
            )
            for detail in error.errors(include_url=False)
        ) from None
