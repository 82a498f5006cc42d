"""Who is on the images: patients, visits and findings with the dependences of the real release.

Findings follow a Gaussian copula. Each finding has a latent normal variable that mixes shared
factors (general illness, heart failure, infection, chronic lung disease, ...) with its own part;
it is present when the latent exceeds the quantile of its prevalence in that view. Factors and own
parts stay with a patient to the degree given by `PERSISTENCE`, so follow-ups resemble each other.
Prevalences keep the order of NIH ChestX-ray14 (Wang et al., CVPR 2017) and are raised, the rare
ones most, so that 1,000 images hold examples of every finding.
"""

from dataclasses import replace
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from common.findings import FINDINGS
from simulations.phantom.render import Study

Normals = npt.NDArray[np.float64]

FACTORS = ("ill", "heart", "infection", "chronic", "tumour")
COHORT = 2  # spawn key of the cohort's generators, apart from those of the pictures

# finding: (prevalence, AP / PA ratio of prevalence, persistence, loadings on FACTORS)
_Row = tuple[float, float, float, tuple[float, float, float, float, float]]
PROFILE: dict[str, _Row] = {
    "Atelectasis": (0.130, 1.5, 0.60, (0.55, 0.10, 0.10, 0.00, 0.15)),
    "Cardiomegaly": (0.065, 1.2, 0.97, (0.30, 0.60, 0.00, 0.00, 0.00)),
    "Effusion": (0.150, 1.5, 0.65, (0.55, 0.35, 0.10, 0.00, 0.25)),
    "Infiltration": (0.180, 1.6, 0.45, (0.50, 0.20, 0.45, 0.00, 0.00)),
    "Mass": (0.070, 0.95, 0.97, (0.30, 0.00, 0.00, 0.00, 0.65)),
    "Nodule": (0.080, 0.80, 0.97, (0.25, 0.00, 0.00, 0.05, 0.60)),
    "Pneumonia": (0.045, 1.8, 0.45, (0.35, 0.05, 0.60, 0.00, 0.00)),
    "Pneumothorax": (0.070, 0.85, 0.65, (0.35, 0.00, 0.00, 0.62, 0.00)),
    "Consolidation": (0.065, 2.6, 0.50, (0.50, 0.05, 0.40, 0.00, 0.05)),
    "Edema": (0.050, 4.5, 0.50, (0.40, 0.55, 0.25, 0.00, 0.00)),
    "Emphysema": (0.045, 1.0, 0.97, (0.25, 0.00, 0.00, 0.68, 0.00)),
    "Fibrosis": (0.040, 0.45, 0.98, (0.15, 0.00, 0.00, 0.35, 0.00)),
    "Pleural_Thickening": (0.055, 0.65, 0.97, (0.30, 0.00, 0.00, 0.25, 0.15)),
    "Hernia": (0.024, 0.40, 0.99, (0.05, 0.00, 0.00, 0.00, 0.00)),
}
PREVALENCE = np.array([PROFILE[name][0] for name in FINDINGS])
AP_RATIO = np.array([PROFILE[name][1] for name in FINDINGS])
PERSISTENCE = np.array([PROFILE[name][2] for name in FINDINGS])
LOADINGS = np.array([PROFILE[name][3] for name in FINDINGS])
FACTOR_PERSISTENCE = 0.85
ADULT = ("Emphysema", "Fibrosis", "Hernia")  # not seen in children
AP_SHARE = 0.40  # of all images, as in the release


def sample_cohort(images: int, hospitals: int, seed: int) -> list[Study]:
    """Exactly `images` studies, ordered by patient and follow-up, patients numbered from 1."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(COHORT, 0)))
    counts = _visits(images, rng)
    patients = len(counts)
    home = rng.permutation(np.arange(patients) % hospitals)
    owner = np.repeat(np.arange(patients), counts)
    portable = _views(owner, home, hospitals, rng)
    present, own = _findings(owner, portable, rng)
    severity = _severities(owner, patients, rng)
    chronic = _any_by_patient(present[:, [FINDINGS.index(name) for name in ADULT]], owner)
    age = _ages(own, chronic, rng)
    sex = np.where(rng.random(patients) < 0.56, "M", "F")
    studies, start = [], 0
    for patient, count in enumerate(counts):
        years = age[patient] + np.cumsum(np.append(0.0, rng.exponential(0.35, count - 1)))
        for visit in range(count):
            row = start + visit
            found = [k for k in range(len(FINDINGS)) if present[row, k]]
            studies.append(
                Study(
                    seed=seed,
                    patient=patient + 1,
                    follow_up=visit,
                    age=int(min(years[visit], 95.0)),
                    sex=str(sex[patient]),
                    view="AP" if portable[row] else "PA",
                    hospital=int(home[patient]),
                    findings=tuple((FINDINGS[k], float(severity[row, k])) for k in found),
                )
            )
        start += count
    return studies


def split_patients(studies: list[Study], seed: int, share: float = 0.2) -> set[int]:
    """Patients of the test list: about `share` of the images, and every finding where possible.

    Of 64 random splits, the one whose positives come closest to `share` of each finding. A set
    with one patient has no test list.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(COHORT, 1)))
    tally = _tally(studies)
    total = np.maximum(tally.sum(axis=0), 1.0)
    best: tuple[float, npt.NDArray[np.bool_]] | None = None
    for _ in range(64):
        chosen = _pick_share(tally[:, 0], rng.permutation(len(tally)), share)
        chosen[rng.integers(len(tally))] |= not chosen.any()
        error = float((((tally[chosen].sum(axis=0) / total) - share) ** 2).sum())
        if not chosen.all() and (best is None or error < best[0]):
            best = (error, chosen)
    return set() if best is None else {int(row) + 1 for row in np.flatnonzero(best[1])}


def hide_labels(studies: list[Study], test: set[int], share: float, seed: int) -> list[Study]:
    """The studies with about `share` (0..1) of the images unlabelled, by whole patients.

    Patients of the test list keep their labels as long as the others suffice.
    """
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(COHORT, 2)))
    sizes = _tally(studies)[:, 0]
    order = rng.permutation(len(sizes))
    last = np.isin(order + 1, sorted(test))
    order = np.concatenate([order[~last], order[last]])
    hidden = _pick_share(sizes, order, share)
    return [replace(study, labelled=not hidden[study.patient - 1]) for study in studies]


def _tally(studies: list[Study]) -> npt.NDArray[np.float64]:
    """Per patient (rows) the number of images and of images with each finding (columns)."""
    tally = np.zeros((studies[-1].patient, 1 + len(FINDINGS)))
    for study in studies:
        tally[study.patient - 1, 0] += 1.0
        for name, _ in study.findings:
            tally[study.patient - 1, 1 + FINDINGS.index(name)] += 1.0
    return tally


def _visits(images: int, rng: np.random.Generator) -> list[int]:
    """Images per patient: half have one, mean about 2.5, a heavy tail as in the release (184)."""
    longest = int(np.clip(images // 40, 3, 184))
    counts: list[int] = []
    left = images
    while left > 0:
        count = 1 if rng.random() < 0.52 else 2 + int(rng.pareto(1.6) * 1.3)
        counts.append(min(count, longest, left))
        left -= counts[-1]
    return counts


def _views(
    owner: npt.NDArray[np.int64],
    home: npt.NDArray[np.int64],
    hospitals: int,
    rng: np.random.Generator,
) -> npt.NDArray[np.bool_]:
    """Which images are AP: hospitals differ, and most patients have only one kind."""
    spread = np.linspace(-0.22, 0.22, hospitals) if hospitals > 1 else np.zeros(1)
    share = AP_SHARE + spread[home]
    habit = rng.beta(0.35 * share, 0.35 * (1.0 - share))
    return np.asarray(rng.random(len(owner)) < habit[owner], dtype=np.bool_)


def _findings(
    owner: npt.NDArray[np.int64], portable: npt.NDArray[np.bool_], rng: np.random.Generator
) -> tuple[npt.NDArray[np.bool_], Normals]:
    """Findings (images, 14) bool, and each patient's own latent per finding (patients, 14)."""
    patients = int(owner.max()) + 1
    lasting = _stratified(patients, len(FACTORS), rng)
    passing = rng.standard_normal((len(owner), len(FACTORS)))
    factor = np.sqrt(FACTOR_PERSISTENCE) * lasting[owner]
    factor += np.sqrt(1.0 - FACTOR_PERSISTENCE) * passing
    own = _stratified(patients, len(FINDINGS), rng)
    passing = rng.standard_normal((len(owner), len(FINDINGS)))
    rest = np.sqrt(PERSISTENCE) * own[owner] + np.sqrt(1.0 - PERSISTENCE) * passing
    shared = (LOADINGS**2).sum(axis=1)
    latent = factor @ LOADINGS.T + np.sqrt(1.0 - shared) * rest
    base = PREVALENCE / (1.0 - AP_SHARE + AP_SHARE * AP_RATIO)  # prevalence in PA
    normal = NormalDist()
    pa = np.array([normal.inv_cdf(1.0 - p) for p in base])
    ap = np.array([normal.inv_cdf(1.0 - p) for p in base * AP_RATIO])
    return latent > np.where(portable[:, None], ap, pa), own


def _severities(
    owner: npt.NDArray[np.int64], patients: int, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Severity 0..1 per image and finding: the patient's level, a little up or down each time."""
    level = rng.uniform(0.15, 1.0, (patients, len(FINDINGS)))
    change = 0.15 * rng.standard_normal((len(owner), len(FINDINGS)))
    return np.clip(level[owner] + change, 0.0, 1.0)


def _ages(
    own: Normals, chronic: npt.NDArray[np.bool_], rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Age in years at the first image, 1..95; about 5 % are children."""
    patients = len(own)
    older = 6.0 * np.maximum(own[:, FINDINGS.index("Hernia")], 0.0)
    years = np.clip(45.0 + older + 16.0 * rng.standard_normal(patients), 18.0, 93.0)
    young = (rng.random(patients) < 0.055) & ~chronic
    return np.where(young, rng.uniform(1.0, 17.0, patients), years)


def _any_by_patient(
    rows: npt.NDArray[np.bool_], owner: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether any image of a patient has any of the columns of `rows` (images, k)."""
    return np.bincount(owner, weights=rows.any(axis=1)) > 0


def _pick_share(
    sizes: npt.NDArray[np.float64], order: npt.NDArray[np.int64], share: float
) -> npt.NDArray[np.bool_]:
    """The first patients of `order` who together own about `share` of all images."""
    before = np.cumsum(sizes[order]) - sizes[order] / 2.0
    picked = np.zeros(len(sizes), dtype=np.bool_)
    picked[order] = before < share * sizes.sum()
    return picked


def _stratified(rows: int, columns: int, rng: np.random.Generator) -> Normals:
    """Standard normals (rows, columns), one in each of `rows` equal slices of probability.

    This keeps the prevalences of a small data set close to their targets.
    """
    normal = NormalDist()
    out = np.empty((rows, columns))
    for column in range(columns):
        levels = (rng.permutation(rows) + rng.random(rows)) / rows
        levels = np.clip(levels, 1e-9, 1.0 - 1e-9)
        out[:, column] = [normal.inv_cdf(float(level)) for level in levels]
    return out
