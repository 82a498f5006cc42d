"""Everything that can be known of a run is known before anything is made or decoded."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from common.checkpoint import write_json
from common.errors import InputError, NotEnoughSitesError, PartitionError
from common.model import build_encoder
from common.model_plan import ModelPlan
from common.plan import Plan
from simulations.experiment import preflight as module
from simulations.experiment.folder import Request, open_run
from simulations.experiment.preflight import check_weights, preflight, preflight_again
from simulations.flower import surroundings
from tests.conftest import ArchiveFactory
from tests.unit.client.sites import SIZE, small_plan

SIMULATION = {"sites": 2, "partition": {"scheme": "iid", "val_fraction": 0.2}}
FEDERATION = {"rounds": 1, "min_sites": 2}


def plan_of(pretrained: str = "none", **more: Any) -> Plan:
    plan = small_plan(**({"simulation": SIMULATION, "federation": FEDERATION} | more))
    model = plan.model.model_copy(update={"pretrained": pretrained})
    return plan.model_copy(update={"model": model})


def tree(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*"))


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    encoder = build_encoder(ModelPlan(backbone="tiny"))
    return {name: value.clone() for name, value in encoder.state_dict().items()}


def test_weights_that_fit(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file(state, tmp_path / "w.safetensors")
    check_weights(plan_of(str(tmp_path / "w.safetensors")))
    torch.save(state, tmp_path / "w.pth")
    check_weights(plan_of(str(tmp_path / "w.pth")))
    check_weights(plan_of())


def test_weights_that_do_not(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    first = next(iter(state))
    broken = state[first].clone()
    broken.view(-1)[0] = float("nan")
    other = {f"layer.{name}": value for name, value in state.items()}
    cases = {
        "nan": (state | {first: broken}, f"weight '{first}': found numbers that are not finite"),
        "shape": (state | {first: torch.zeros(3, 3)}, r"found shape \(3, 3\)"),
        "other": (other, r"found 30 of 30 weights missing; allowed: .* of tiny"),
    }
    for name, (values, message) in cases.items():
        file = tmp_path / f"{name}.safetensors"
        save_file(values, file)
        with pytest.raises(InputError, match=message) as caught:
            check_weights(plan_of(str(file)))
        assert caught.value.problems[0].file == str(file)
    (tmp_path / "empty.pth").touch()
    with pytest.raises(InputError, match=r"cannot be read \(EOFError\)"):
        check_weights(plan_of(str(tmp_path / "empty.pth")))
    with pytest.raises(InputError, match="No such file"):
        check_weights(plan_of(str(tmp_path / "gone.safetensors")))
    with pytest.raises(InputError, match="for tiny"):
        check_weights(plan_of("imagenet"))


def test_all_that_is_wrong_with_machine_and_folder_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    gone = str(tmp_path / "gone.safetensors")
    plan = plan_of(gone, simulation=SIMULATION | {"cpus_per_site": 1000.0})
    with pytest.raises(InputError) as caught:
        preflight(plan, Request(tmp_path / "no-archive", None), tmp_path / "file")
    said = [f"{problem.file}: {problem.at}" for problem in caught.value.problems]
    assert said == [
        f"{gone}: model.pretrained",
        "plan: key 'simulation.cpus_per_site'",
        f"{tmp_path / 'file'}: ",
    ]


def test_surroundings_in_which_nothing_can_run_are_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 80)  # no socket fits in it
    long.mkdir()
    monkeypatch.setattr(surroundings, "_places", lambda: [str(long)])
    with pytest.raises(InputError, match="temporary files: found"):
        preflight(plan_of(), Request(None, None), None)
    assert tree(tmp_path) == [long.name]
    monkeypatch.undo()
    preflight(plan_of(), Request(None, None), None)


def test_nothing_is_left_behind_whatever_is_found(
    tmp_path: Path, nih_archive: ArchiveFactory
) -> None:
    archive = nih_archive(patients=12)
    before = tree(tmp_path)
    out, request = tmp_path / "new" / "deep" / "run", Request(archive, None)
    assert len(preflight(plan_of(), request, out).cut.hospitals) == 2
    for plan, asked, error in (
        (plan_of(simulation=SIMULATION | {"sites": 50}), request, PartitionError),
        (plan_of(federation={"min_sites": 3}), request, NotEnoughSitesError),
        (plan_of(), Request(tmp_path / "typo", None), InputError),
        (plan_of(tasks={"findings": False}), request, PartitionError),
        (plan_of(), Request(None, tmp_path / "typo"), InputError),
    ):
        with pytest.raises(error):
            preflight(plan, asked, out)
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    ("masks", "planes"),
    [(False, 24), (True, 48)],  # 12 patients with 2 images each
)
def test_room_for_the_decoded_images(
    tmp_path: Path,
    nih_archive: ArchiveFactory,
    monkeypatch: pytest.MonkeyPatch,
    masks: bool,
    planes: int,
) -> None:
    request, out = Request(nih_archive(patients=12, masks=masks), None), tmp_path / "a" / "run"
    asked: list[Path] = []

    def disk(free: int) -> None:
        def usage(place: Path) -> SimpleNamespace:
            asked.append(place)
            return SimpleNamespace(free=free)

        monkeypatch.setattr(shutil, "disk_usage", usage)

    needed = planes * SIZE * SIZE
    disk(needed - 1)
    monkeypatch.setattr(module, "check_surroundings", lambda: None)
    with pytest.raises(InputError, match=rf"0\.1 MiB, for {planes} decoded .* of 32 px"):
        preflight(plan_of(), request, out)
    assert asked == [tmp_path.resolve()]  # the folder itself is not there
    disk(needed)
    preflight(plan_of(), request, out)
    preflight(plan_of(), request, None)
    # What an interrupted run has decoded already takes no room again.
    open_run(plan_of(), out, request)
    (out / "cache").mkdir()
    (out / "cache" / "images.u8").write_bytes(b"\1" * 8192)
    disk(needed - 8193)
    with pytest.raises(InputError, match="decoded"):
        preflight_again(plan_of(), request, out)
    disk(needed - 8192)
    assert preflight_again(plan_of(), request, out) is not None


def test_room_for_a_phantom_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each image its picture, its pixels and those of its mask."""
    plan = plan_of(simulation=SIMULATION | {"phantom_images": 60})
    monkeypatch.setattr(module, "check_surroundings", lambda: None)
    usage = SimpleNamespace(free=3 * 60 * SIZE * SIZE)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage)
    preflight(plan, Request(None, None), tmp_path / "run")
    usage.free -= 1
    with pytest.raises(InputError, match="for 180 decoded"):
        preflight(plan, Request(None, None), tmp_path / "run")


def test_an_interrupted_run_is_asked_again(tmp_path: Path, nih_archive: ArchiveFactory) -> None:
    request, run = Request(nih_archive(patients=12), None), tmp_path / "run"
    open_run(plan_of(), run, request)
    found = preflight_again(plan_of(), request, run)
    assert found is not None
    assert [each.name for each in found.cut.hospitals] == ["site-1", "site-2"]
    lost = plan_of(str(tmp_path / "gone.safetensors"))
    with pytest.raises(InputError, match=r"model\.pretrained"):
        preflight_again(lost, request, run)
    known = {"sites": ["site-1", "site-2"], "data": "a", "synthetic": False, "remarks": []}
    write_json(run / "prepared.json", known)
    assert preflight_again(plan_of(), Request(tmp_path / "gone", None), run) is None
    # Nothing is needed to print what a finished run has found.
    write_json(run / "summary.json", {"status": "completed"})
    assert preflight_again(lost, Request(tmp_path / "gone", None), run) is None
