"""Rows 6 and 8: what Flower costs beside the training, and what travels."""

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from common.findings import FINDINGS
from common.model import build_model
from common.parameters import shared_layout
from common.plan import Plan
from common.sections import EvaluationPlan, FederationPlan
from common.simulated import SimulationPlan
from common.update import SCHEMA, Broadcast, Update
from common.wire import Parcel, Wire, pack_broadcast, pack_update
from simulations.bench.learner import bench_plan, make_learner, round_by_hand
from simulations.bench.material import Material, Scale
from simulations.bench.timing import Goal, Row, cores, row
from simulations.experiment.prepare import write_site
from simulations.flower.runtime import run_simulation

ROUND = Goal("<=", 1.1)
TRAFFIC: dict[Wire, Goal] = {"bf16": Goal("<=", 2.02), "fp32": Goal("<=", 4.02)}
SITES = 2
SKIPPED = 1  # the first round also starts Ray's processes, loads torch and sends the base


def rounds(material: Material, repeats: int) -> list[Row]:
    """Row 6: wall time of a simulated round over the training time of its sites.

    The sites train one after the other, each with all cores, so that without any overhead a
    round would take exactly the sum of what its sites report. Every round is a repeat.
    """
    steps = steps_for(material)
    plan = federated_plan(material.scale, steps, repeats + SKIPPED)
    run = material.folder / "run"
    run.mkdir()
    sites = write_sites(material, material.folder / "sites")
    run_simulation(plan, run, sites, SITES, Console(stderr=True, highlight=False))
    material.rounds = read_rounds(run)
    records = material.rounds[SKIPPED:]
    shortest = min(site["seconds"] for line in records for site in line["sites"].values())
    note = (
        f"{SITES} sites one after the other on {cores()} cores, {steps} steps a round of "
        f"{material.scale.backbone} at {material.scale.image_size} px, bf16 on the wire: seconds "
        "of a round over the sum of its sites' seconds (steps, and loading and saving of their "
        "heads and optimizer), both from rounds.jsonl; "
        f"the first of {len(material.rounds)} rounds is left out; the shortest training took "
        f"{shortest:.1f} s"
    )
    values = round_quotients(records)
    return [row(6, "simulated round / its sites' training", values, "", ROUND, note)]


def round_quotients(records: Sequence[dict[str, Any]]) -> list[float]:
    """Each round's seconds over the sum of its sites' training seconds."""
    return [
        line["seconds"] / sum(site["seconds"] for site in line["sites"].values())
        for line in records
    ]


def read_rounds(run: Path) -> list[dict[str, Any]]:
    """The lines of a run's rounds.jsonl."""
    text = (run / "rounds.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def federated_plan(scale: Scale, steps: int, number_of_rounds: int) -> Plan:
    """The plan of row 6: a site takes all cores, so that the sites train one after the other."""
    federation = FederationPlan(rounds=number_of_rounds, min_sites=SITES)
    size, batch = scale.image_size, scale.batch_size
    plan = bench_plan(scale.backbone, size, batch, steps, federation=federation)
    simulation = SimulationPlan(sites=SITES, cpus_per_site=float(cores()))
    # Validation is no training, so it stays out of the rounds, and of both sides of the ratio.
    evaluation = EvaluationPlan(every=number_of_rounds + 1)
    return plan.model_copy(update={"simulation": simulation, "evaluation": evaluation})


def steps_for(material: Material) -> int:
    """Steps that take one site about `client_seconds` on all cores of this machine."""
    scale = material.scale
    plan = bench_plan(scale.backbone, scale.image_size, scale.batch_size, scale.steps)
    learner = make_learner(plan, torch.device("cpu"))
    data = material.site_data(masks=scale.batch_size)
    seconds = []
    for _ in range(3):  # the first warms up; the fastest is what a quiet machine does
        started = time.perf_counter()
        round_by_hand(learner, data, 1)
        seconds.append(time.perf_counter() - started)
    return max(1, math.ceil(scale.client_seconds * scale.steps / min(seconds)))


def write_sites(material: Material, folder: Path) -> Path:
    """Two site folders that share the cache; every image has its findings and its mask."""
    images = material.cache.index[["image"]]
    for number in range(SITES):
        own = images.iloc[number::SITES].reset_index(drop=True)
        val = max(1, len(own) // 16)
        splits = np.where(np.arange(len(own)) < val, "val", "train")
        name = f"site-{number + 1}"
        cache = str(material.cache.folder)
        settings: dict[str, object] = {"name": name, "cache": cache, "device": "cpu"}
        rows = own.assign(split=splits, labelled=True)
        write_site(folder / name, {**settings, "annotates": list(FINDINGS)}, rows)
    return folder


def traffic(material: Material, repeats: int) -> list[Row]:
    """Row 8: bytes per shared parameter in each direction. A size needs no repeats."""
    plan = federated_plan(material.scale, 1, 1)
    parameters = shared_layout(build_model(plan), plan.heads).size
    measured = []
    for wire, goal in TRAFFIC.items():
        up, down = (content(parcel) for parcel in parcels(plan, parameters, wire))
        note = (
            f"one update ({up:,} B) and one broadcast ({down:,} B) of {parameters:,} shared "
            f"parameters of {material.scale.backbone}, arrays and configuration of the real "
            "parcels; without Flower's own envelope, and without the base, which a site gets "
            "once in a run as float32; the larger direction counts"
        )
        what = f"bytes per shared parameter, {wire}"
        measured.append(row(8, what, [max(up, down) / parameters], "B", goal, note))
    if material.rounds:
        measured.append(_counted(material.rounds[SKIPPED:], parameters))
    return measured


def _counted(records: Sequence[dict[str, Any]], parameters: int) -> Row:
    """The same from what the server of row 6 counted, round by round."""
    values = [
        max(line["bytes_up"], line["bytes_down"]) / len(line["sites"]) / parameters
        for line in records
    ]
    note = (
        "arrays that the server of row 6 sent and received per round and site (rounds.jsonl); "
        "the first round, which also sends the base, is left out; the larger direction counts"
    )
    return row(8, "the same in a real run, bf16", values, "B", TRAFFIC["bf16"], note)


def parcels(plan: Plan, parameters: int, wire: Wire) -> tuple[Parcel, Parcel]:
    """What one site sends (an update) and receives (a broadcast without the base)."""
    delta = np.random.default_rng(0).standard_normal(parameters).astype(np.float32) * 1e-3
    digest = plan.sha256
    covers, metrics = (*FINDINGS, "lungs"), {"train_loss": 0.5, "val_macro_auroc": 0.7}
    update = Update(SCHEMA, digest, 1, "site-1", digest, delta, 100.0, covers, metrics, 6.0)
    broadcast = Broadcast(plan.to_json(), 1, digest, delta)
    return pack_update(update, wire), pack_broadcast(broadcast, wire)


def content(parcel: Parcel) -> int:
    """Bytes of a parcel: its arrays, and its configuration and metrics as JSON."""
    return parcel.bytes + len(json.dumps([parcel.config, parcel.metrics]).encode())
