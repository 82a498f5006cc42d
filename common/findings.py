"""The 14 findings of NIH ChestX-ray14, in the order of the data set's paper.

Source: Wang et al., "ChestX-ray8", CVPR 2017 (14-finding release, 2017). To add a finding,
append it here: tables, heads, losses, metrics and reports follow this tuple.
"""

FINDINGS: tuple[str, ...] = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
    "Consolidation",
    "Edema",
    "Emphysema",
    "Fibrosis",
    "Pleural_Thickening",
    "Hernia",
)
NO_FINDING = "No Finding"

# Spellings that the release itself uses for the same finding (the box list says "Infiltrate").
ALIASES: dict[str, str] = {"Infiltrate": "Infiltration", "Pleural Thickening": "Pleural_Thickening"}

LUNGS = "lungs"  # in `Update.covers`, beside the names of findings
