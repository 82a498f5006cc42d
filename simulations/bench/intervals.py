"""Row 11: how long the intervals of one model on the official NIH test take."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from client.data.tables import read_list, read_table
from common.bootstrap import bootstrap
from common.findings import FINDINGS
from simulations.bench.material import Material, Scale
from simulations.bench.timing import Goal, Row, interleave, row

BOOTSTRAP = Goal("<=", 5.0)
METADATA = Path(__file__).resolve().parents[3] / "shared" / "nih_metadata"
TABLE, TEST_LIST = "Data_Entry_2017_v2020.csv.gz", "test_list.txt"
# Prevalence in the official test list, in the order of FINDINGS' names.
PREVALENCE = {
    "Atelectasis": 0.128,
    "Cardiomegaly": 0.042,
    "Effusion": 0.182,
    "Infiltration": 0.239,
    "Mass": 0.068,
    "Nodule": 0.063,
    "Pneumonia": 0.022,
    "Pneumothorax": 0.104,
    "Consolidation": 0.071,
    "Edema": 0.036,
    "Emphysema": 0.043,
    "Fibrosis": 0.017,
    "Pleural_Thickening": 0.045,
    "Hernia": 0.003,
}
SKEW = 1.4  # of the log-normal images per patient; the official test: median 2, largest 184

Targets = npt.NDArray[np.int8]
Patients = npt.NDArray[np.str_] | npt.NDArray[np.int64]


def bootstrapping(material: Material, repeats: int) -> list[Row]:
    """Row 11: seconds for 14 AUROCs with their patient-bootstrap intervals."""
    scale = material.scale
    if METADATA.is_dir():
        source, (targets, patients) = "official NIH test list", official_test(METADATA)
    else:
        source, (targets, patients) = "synthetic patients as skewed as NIH's", synthetic_test(scale)
    generator = np.random.default_rng(0)
    scores = (targets + generator.standard_normal(targets.shape)).astype(np.float32)
    seconds = interleave(
        {"table": lambda: bootstrap(targets, scores, patients, scale.resamples).auroc.scores()},
        repeats,
    )["table"]
    note = (
        f"{len(patients):,} images of {len(np.unique(patients)):,} patients ({source}), "
        f"random scores, {scale.resamples:,} resamples of patients; average precision included"
    )
    return [row(11, "14 AUROCs with intervals", seconds, "s", BOOTSTRAP, note)]


def official_test(metadata: Path) -> tuple[Targets, Patients]:
    """Labels (N, 14) int8 and patients (N,) of the official test list."""
    table = read_table(metadata / TABLE)
    table = table[table["image"].isin(read_list(metadata / TEST_LIST))]
    targets = table[list(FINDINGS)].to_numpy(np.int8)
    return targets, table["patient"].to_numpy(dtype=np.str_)


def synthetic_test(scale: Scale) -> tuple[Targets, Patients]:
    """The same for made-up patients: a few have very many images, most have one or two."""
    generator = np.random.default_rng(0)
    shares = generator.lognormal(sigma=SKEW, size=scale.tested_patients)
    rest = scale.tested_images - scale.tested_patients  # every patient has one image
    counts = 1 + generator.multinomial(rest, shares / shares.sum())
    patients = np.repeat(np.arange(scale.tested_patients), counts)
    prevalence = np.array([PREVALENCE[finding] for finding in FINDINGS])
    drawn = generator.random((scale.tested_images, len(FINDINGS))) < prevalence
    return drawn.astype(np.int8), patients
