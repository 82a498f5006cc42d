"""Where Consilium keeps what nobody named a place for."""

import os
from pathlib import Path


def demo_folder(nodes: int) -> Path:
    """The prepared demo of plain `flwr run .` for so many sites, its hospitals in `sites/`.

    Below the folder that the environment variable CONSILIUM_HOME names, or ~/.consilium.
    Server and sites of a simulation find each other's files by this one rule.
    """
    home = os.environ.get("CONSILIUM_HOME") or Path.home() / ".consilium"
    return Path(home) / f"demo-{nodes}-sites"
