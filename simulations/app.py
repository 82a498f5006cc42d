"""Plain `flwr run .`: Flower's ServerApp, which prepares a demo when it is given no plan.

`consilium-sim run` prepares the sites itself, names plan and run folder in the run configuration
and the sites in the environment; a Flower user who types `flwr run .` in the checkout names
nothing, and gets the demo.
"""

import json
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from common.home import demo_folder
from common.plan import Plan, load_plan, plan_from_json
from server.app import main as federate
from server.run_folder import write_plan

app = ServerApp()

DEMO_PLAN = Path(__file__).resolve().parent / "plans" / "demo.yaml"
NODES_SECONDS = 60.0


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation of the run configuration; without one, the demo."""
    if not any(context.run_config.get(key) for key in ("plan", "run")):
        nodes = wait_for_nodes(grid)
        context.run_config |= prepare_demo(demo_plan(nodes), demo_folder(nodes))
    federate(grid, context)


def wait_for_nodes(grid: Grid) -> int:
    """How many SuperNodes there are, once there are two and their number stands still."""
    deadline, before = time.monotonic() + NODES_SECONDS, 0
    while time.monotonic() < deadline:
        nodes = len(list(grid.get_node_ids()))
        if nodes >= 2 and nodes == before:
            return nodes
        before = nodes
        time.sleep(1.0)
    return max(2, before)


def demo_plan(nodes: int) -> Plan:
    """The demo's plan for as many hospitals as Flower has nodes."""
    plan = load_plan(DEMO_PLAN)
    value = plan.model_dump(mode="json")
    value["simulation"]["sites"] = nodes
    value["federation"]["min_sites"] = min(nodes, plan.federation.min_sites)
    return plan_from_json(json.dumps(value))


def prepare_demo(plan: Plan, folder: Path) -> dict[str, str | int]:
    """Make the demo's hospitals in `folder`, if need be; return the run configuration.

    Every call names a new run folder below `folder`.
    """
    # Here, because this module is also what starts every run that has its sites already.
    from simulations.experiment.prepare import load_prepared, prepare

    if load_prepared(folder) is None:
        folder.mkdir(parents=True, exist_ok=True)
        prepare(plan, folder, None, None, False, Console())
    run = folder / "runs" / time.strftime("%Y%m%d-%H%M%S")
    plan_file = write_plan(run, plan)
    print(f"run folder: {run}", flush=True)
    return {"plan": str(plan_file), "run": str(run)}
