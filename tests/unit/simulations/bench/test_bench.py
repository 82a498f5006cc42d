"""The benchmark rows at tiny sizes: what they compare, not how fast this machine is."""

import io
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from client.site import Site
from common.errors import InputError
from common.model import build_model
from common.parameters import flatten, shared_layout
from simulations.bench import measure, print_rows
from simulations.bench.decoding import decode
from simulations.bench.federation import (
    federated_plan,
    round_quotients,
    steps_for,
    traffic,
    write_sites,
)
from simulations.bench.gpu import GpuScale, main, measure_gpu, report
from simulations.bench.intervals import official_test, synthetic_test
from simulations.bench.learner import bench_plan, compared_rounds, make_learner
from simulations.bench.material import FULL, Material, Scale
from simulations.bench.privacy import (
    PeakUnknownError,
    most_memory,
    peak,
    step_of,
    synthetic_batch,
)
from simulations.bench.privacy import (
    main as peak_main,
)
from simulations.bench.table import number
from simulations.bench.timing import Goal, cores, interleave, machine, quotients, row

ROOT = Path(__file__).resolve().parents[4]
CPU = torch.device("cpu")
TINY = Scale(
    backbone="tiny",
    image_size=32,
    private_backbone="tiny",
    private_image_size=32,
    batch_size=4,
    steps=2,
    png_size=64,
    phantoms=3,
    files=6,
    images=13,
    client_seconds=0.1,
    tested_images=300,
    tested_patients=60,
    resamples=5,
)
TINY_GPU = GpuScale("tiny", image_size=32, batch_size=4, steps=2, images=10, compiled=False)
ROW_KEYS = {"row", "what", "value", "unit", "goal", "met", "low", "high", "note"}


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    return measure([11, 1, 2, 3, 4, 5, 8, 8, 9], 2, TINY)


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    return Material(tmp_path_factory.mktemp("bench"), TINY)


@pytest.mark.slow
def test_every_row_is_a_finite_positive_number_with_its_range_and_goal(measured):
    rows = measured["rows"]
    assert [each["row"] for each in rows] == [1, 2, 3, 4, 5, 5, 5, 5, 8, 8, 9, 9, 11]
    for each in rows:
        assert set(each) == ROW_KEYS
        assert math.isfinite(each["value"])
        assert 0 < each["low"] <= each["value"] <= each["high"]
        assert (each["met"] is None) == (each["goal"] is None)
        assert each["note"]


@pytest.mark.slow
def test_only_the_masks_on_every_image_figures_have_no_goal(measured):
    without = [each["what"] for each in measured["rows"] if each["goal"] is None]
    assert len(without) == 2
    assert all(what.endswith("masks on all") for what in without)


@pytest.mark.slow
def test_the_result_names_machine_date_and_command_and_is_json(measured, tmp_path):
    json.dumps(measured, allow_nan=False)
    assert measured["command"] == "consilium-sim bench --only 1,2,3,4,5,8,9,11 --repeats 2"
    facts = measured["machine"]
    assert facts["cores"] == cores()
    assert facts["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"cpu", "date", "load", "python"} <= set(facts)


@pytest.mark.slow
def test_the_table_shows_every_row_and_what_it_compared(measured):
    text = io.StringIO()
    print_rows(measured, Console(file=text, width=200))
    for each in measured["rows"]:
        assert each["what"] in text.getvalue()
        assert each["note"].split(",")[0] in text.getvalue()
    assert measured["command"] in text.getvalue()


@pytest.mark.slow
def test_wire_formats_cost_two_and_four_bytes_a_parameter(measured):
    bf16, fp32 = (each for each in measured["rows"] if each["row"] == 8)
    assert 2 < bf16["value"] < 2.02
    assert 4 < fp32["value"] < 4.02
    assert bf16["met"] is True
    assert fp32["met"] is True


@pytest.mark.parametrize(
    ("rows", "repeats", "message"),
    [
        ([1, 7], 5, "bench: --only: found 7; allowed: rows among 1, 2, 3, 4, 5, 6, 8, 9, 11"),
        ([], 5, "bench: --only: found no row"),
        ([1], 0, "bench: --repeats: found 0; allowed: 1 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused(rows, repeats, message):
    with pytest.raises(InputError) as caught:
        measure(rows, repeats, TINY)
    assert message in str(caught.value)


def test_a_row_that_fails_is_not_met_says_why_and_leaves_the_others():
    result = measure([1, 8], 1, Scale(**{**vars(TINY), "phantoms": 0}))
    broken, *others = result["rows"]
    assert (broken["row"], broken["value"], broken["met"]) == (1, None, False)
    assert "images" in broken["note"]
    assert [each["row"] for each in others] == [8, 8]
    text = io.StringIO()
    print_rows(result, Console(file=text, width=200))
    assert "not measured" in text.getvalue()


def test_our_training_and_the_loop_by_hand_end_with_the_same_parameters(material):
    data, ends = material.site_data(masks=1), []
    assert (data.mask_row >= 0).sum() == len(data.table) // TINY.batch_size
    plan = bench_plan("tiny", 32, 4, steps=5)
    # SGD, since Adam's first steps turn a rounding error in a tiny gradient into a full step.
    training = plan.training.model_copy(update={"optimizer": "sgd", "learning_rate": 0.05})
    plan = plan.model_copy(update={"training": training})
    for arm in ("ours", "hand"):
        learner = make_learner(plan, CPU)
        start = flatten(learner.model, shared_layout(learner.model, "shared"))
        compared_rounds(learner, data)[arm]()
        ends.append(flatten(learner.model, shared_layout(learner.model, "shared")))
        assert np.abs(ends[-1] - start).max() > 1e-3
    np.testing.assert_allclose(ends[0], ends[1], atol=1e-6)


def test_training_rows_are_whole_batches_with_every_finding(material):
    data = material.site_data(masks=0)
    assert len(data.rows("train")) == 12  # of 13 images, in batches of 4
    assert data.known.all()
    assert (data.mask_row == -1).all()


def test_the_archive_has_enough_files_for_all_cores_and_the_cache_has_masks(material):
    assert len(material.archive.table) == max(TINY.images, TINY.files * cores())
    assert (material.archive.table["mask"] == "").all()
    assert len(material.cache.images) == len(material.cache.masks) == TINY.images
    path = Path(material.archive.table["path"].iloc[0])
    np.testing.assert_array_equal(decode(path, 32), material.cache.images[0])


def test_the_full_scale_is_the_one_that_the_goals_are_about():
    assert (FULL.backbone, FULL.image_size, FULL.batch_size) == ("resnet18", 128, 16)
    assert (FULL.png_size, FULL.tested_images, FULL.resamples) == (1024, 25_596, 1000)
    assert (FULL.private_backbone, FULL.private_image_size) == ("densenet121", 224)
    assert FULL.client_seconds > 5


def test_sites_of_the_simulated_run_can_train(material, tmp_path):
    plan = federated_plan(TINY, 1, 2)
    sites = write_sites(material, tmp_path / "sites")
    model = build_model(plan)
    shared = flatten(model, shared_layout(model, plan.heads))
    for folder in sorted(sites.iterdir()):
        update = Site.open(folder).train(plan, 1, shared)
        assert set(update.metrics) == {"train_loss"}  # no validation in what is timed
        assert update.seconds > 0
    assert plan.simulation.cpus_per_site == cores()
    assert steps_for(material) >= 1


def test_a_round_is_divided_by_the_training_of_its_sites():
    sites = {"a": {"seconds": 6.0}, "b": {"seconds": 4.0}}
    assert round_quotients([{"seconds": 11.0, "sites": sites}]) == [1.1]


def test_the_bytes_of_a_run_are_counted_per_site_and_parameter_without_its_first_round(tmp_path):
    plan, material = federated_plan(TINY, 1, 1), Material(tmp_path, TINY)
    parameters = shared_layout(build_model(plan), plan.heads).size
    first = {"bytes_up": 10**9, "bytes_down": 10**9, "sites": {"a": {}, "b": {}}}
    later = {**first, "bytes_up": 4 * parameters, "bytes_down": 4 * parameters}
    material.rounds = [first, later]
    assert traffic(material, 1)[-1].value == 2.0


def test_both_kinds_of_step_train_the_same_network_on_the_same_images(monkeypatch):
    learners = []
    true = make_learner
    monkeypatch.setattr(
        "simulations.bench.privacy.make_learner",
        lambda *given: learners.append(true(*given)) or learners[-1],
    )
    works = [step_of(kind, "tiny", 32, 4) for kind in ("plain", "private")]
    starts = [flatten(each.model, shared_layout(each.model, "shared")) for each in learners]
    np.testing.assert_array_equal(*starts)
    for work, learner, start in zip(works, learners, starts, strict=True):
        work()
        end = flatten(learner.model, shared_layout(learner.model, "shared"))
        assert np.abs(end - start).max() > 0
    batch = synthetic_batch(32, 4)
    assert (batch.units, batch.images.shape) == (4, (4, 1, 32, 32))
    assert torch.equal(batch.images, synthetic_batch(32, 4).images)


def test_the_peak_is_of_the_process_that_takes_the_steps(capsys):
    ballast = np.ones(300_000_000, dtype=np.uint8)  # its own 300 MB must not count
    here = most_memory()
    assert here > 300
    assert 50 < peak("private", TINY) < here
    del ballast
    peak_main("plain", "tiny", 32, 2)
    assert float(capsys.readouterr().out) == pytest.approx(most_memory(), rel=0.01)


def test_steps_that_fail_are_an_error_that_says_why():
    with pytest.raises(PeakUnknownError, match="the private steps of row 9 failed: "):
        peak("private", Scale(**{**vars(TINY), "private_backbone": "none"}))


def test_interleaving_warms_up_once_and_rotates_the_order():
    order: list[str] = []
    waits: list[int] = []
    arms = {name: lambda name=name: order.append(name) for name in "ab"}
    seconds = interleave(arms, repeats=2, turns=2, settle=lambda: waits.append(1))
    assert "".join(order) == "ab" + "ab" + "ba" + "ab" + "ba"
    assert len(waits) == 2 * 8
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2}


def test_rows_take_the_median_and_refuse_what_is_not_finite():
    made = row(1, "what", quotients([1.0, 2.0, 9.0], [1.0, 1.0, 1.0]), "", Goal("<=", 2.0), "")
    assert (made.value, made.low, made.high, made.goal, made.met) == (2.0, 1.0, 9.0, "≤ 2", True)
    assert Goal(">=", 3000.0).met(2999.0) is False
    assert str(Goal(">=", 3000.0)) == "≥ 3,000"
    for values in ([], [math.nan], [1.0, math.inf]):
        with pytest.raises(ValueError, match="not finite"):
            row(1, "what", values, "", None, "")


def test_numbers_in_the_table():
    assert [number(value) for value in (None, 0.97, 530.4, 3120.0)] == [
        "-",
        "0.970",
        "530",
        "3,120",
    ]


def test_synthetic_patients_are_as_skewed_as_those_of_the_official_test():
    targets, patients = synthetic_test(FULL)
    assert targets.shape == (25_596, 14)
    _, counts = np.unique(patients, return_counts=True)
    assert len(counts) == 2_797
    assert np.median(counts) <= 5
    assert counts.max() > 100
    assert set(np.unique(targets)) == {0, 1}


def test_the_official_test_is_used_where_it_is_at_hand(shared_dir):
    targets, patients = official_test(shared_dir / "nih_metadata")
    assert targets.shape == (25_596, 14)
    assert len(np.unique(patients)) == 2_797


def test_gpu_rows_walk_the_same_path_on_a_cpu():
    rows = measure_gpu(CPU, TINY_GPU, 1)
    assert [each.row for each in rows] == [1, 4, 10, 10]
    assert all(each.value is not None and math.isfinite(each.value) for each in rows)
    assert [each.goal for each in rows] == ["≥ 0.97", "≥ 0.97", "≥ 3,000", "≥ 3"]


def test_gpu_report_writes_json_and_fails_when_a_goal_is_missed(tmp_path, capsys):
    assert report(CPU, TINY_GPU, 1, tmp_path / "gpu.json") == 1  # no CPU does 3,000 images/s x 3
    result = json.loads((tmp_path / "gpu.json").read_text())
    assert result["machine"]["device"] == "cpu"
    assert result["command"] == "python -m simulations.bench.gpu --batch 4 --repeats 1"
    assert "training speed" in capsys.readouterr().out


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_gpu_rows_are_refused_without_a_gpu(tmp_path, capsys):
    assert main(["--json", str(tmp_path / "gpu.json")]) == 2
    assert capsys.readouterr().err == (
        "error: this machine: found no CUDA device that torch can use; allowed: an NVIDIA GPU "
        "and a CUDA build of torch. Run it on a GPU host; `make bench` needs none.\n"
    )
    assert not (tmp_path / "gpu.json").exists()


@pytest.mark.parametrize("argument", [["--repeats", "0"], ["--batch", "0"]])
def test_gpu_arguments_out_of_range_are_refused(argument, capsys):
    with pytest.raises(SystemExit) as caught:
        main(argument)
    assert caught.value.code == 2
    assert "--repeats must be 1 or more" in capsys.readouterr().err


def test_gpu_rows_need_neither_flower_nor_opacus_nor_the_phantom():
    code = (
        "import sys\n"
        "for name in ('flwr', 'opacus', 'ray', 'grpc'): sys.modules[name] = None\n"
        "import simulations.bench.gpu\n"
        "print([n for n in sys.modules if n.startswith(('server', 'simulations.phantom'))])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_the_machine_is_named_without_proc(monkeypatch):
    monkeypatch.setattr(Path, "read_text", _no_file)
    assert machine()["cpu"]


def _no_file(*_: object, **__: object) -> str:
    raise FileNotFoundError


@pytest.mark.slow
def test_the_flower_row_on_real_processes():
    result = measure([6, 8], 1, TINY)
    assert [each["row"] for each in result["rows"]] == [6, 8, 8, 8]
    assert all(each["value"] is not None for each in result["rows"]), result
    assert result["rows"][0]["value"] > 1
    assert result["rows"][3]["value"] == pytest.approx(2.0, abs=0.01)
