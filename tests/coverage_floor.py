"""Fail when line coverage falls: 90 % of all code, 95 % of common/."""

import json
import sys
from pathlib import Path

FLOORS = {"": 90.0, "common/": 95.0}


def main(report: Path) -> int:
    """Print the share of each folder; return 1 if one is under its floor."""
    files = json.loads(report.read_text())["files"]
    failed = False
    for prefix, floor in FLOORS.items():
        chosen = [f["summary"] for name, f in files.items() if name.startswith(prefix)]
        lines = sum(summary["num_statements"] for summary in chosen)
        share = 100 * sum(summary["covered_lines"] for summary in chosen) / lines
        print(f"coverage of {prefix or 'everything'}: {share:.1f} % (floor {floor:.0f} %)")
        failed |= share < floor
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
