"""Where Consilium keeps what nobody named a place for."""

import os
from pathlib import Path

# The environment variable with the file in which a server of ours also says why it failed: the
# disk of its run folder may be what is full.
ENDING = "CONSILIUM_ENDING"
# The environment variable with the folder of site folders of a simulation on this machine. It is
# set where the sites run: what comes from the coordinator never names a folder of a site.
SITES = "CONSILIUM_SITES"


def demo_folder(nodes: int) -> Path:
    """The prepared demo of plain `flwr run .` for so many sites, its hospitals in `sites/`.

    Below the folder that the environment variable CONSILIUM_HOME names, or ~/.consilium.
    Server and sites of a simulation find each other's files by this one rule.
    """
    home = os.environ.get("CONSILIUM_HOME") or Path.home() / ".consilium"
    return Path(home) / f"demo-{nodes}-sites"
