"""What the children of a run inherit, and the short folder in which they work."""

import os
import socket
import sys
from pathlib import Path

import pytest

from common.errors import InputError
from simulations.flower import surroundings
from simulations.flower.surroundings import check_surroundings, child_environment, short_folder

FOREIGN = {
    "RAY_ADDRESS": "1.2.3.4:6379", "RAY_TMPDIR": "/x", "RAY_NAMESPACE": "n", "ray_x": "1",
    "ALL_PROXY": "socks5://127.0.0.1:9", "all_proxy": "socks5://127.0.0.1:9",
    "HTTP_PROXY": "http://127.0.0.1:9", "https_proxy": "::garbage", "GRPC_PROXY": "http://x",
    "grpc_proxy": "http://x", "no_grpc_proxy": "x", "NO_PROXY": "example.org",
    "FLWR_HOME": "/x", "FLWR_LOCAL_SUPERLINK_HTTP_API_PORT": "1", "PYTHONSTARTUP": "/x",
    "PYTHONWARNINGS": "error", "PYTHONINSPECT": "1", "PYTHONIOENCODING": "ascii",
    "PYTHONOPTIMIZE": "2", "SSL_CERT_FILE": "/x", "PIP_INDEX_URL": "x", "UNKNOWN": "1",
}  # fmt: skip


@pytest.fixture
def foreign(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in FOREIGN.items():
        monkeypatch.setenv(name, value)


def test_nothing_foreign_is_inherited(foreign: None) -> None:
    environment = child_environment(Path("/h"), "mark", 3)
    ours = {"RAY_TMPDIR": "/h", "FLWR_HOME": "/h", "NO_PROXY": "*"}
    assert {name: environment.get(name) for name in FOREIGN} == dict.fromkeys(FOREIGN) | ours
    assert {name for name in environment if name.startswith("RAY_")} == {
        "RAY_USAGE_STATS_ENABLED",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER",
        "RAY_TMPDIR",
    }


def test_what_a_run_needs_is_there(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {
        "CUDA_VISIBLE_DEVICES": "1", "LC_ALL": "C", "TORCH_HOME": "/t", "HOME": str(tmp_path),
        "LD_LIBRARY_PATH": "/l", "CONSILIUM_HOME": "/c", "PYTHONPATH": f"lib:{tmp_path}:",
        "PATH": "/bin",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    environment = child_environment(Path("/h"), "mark", 3)
    expected = {
        "CUDA_VISIBLE_DEVICES": "1", "LC_ALL": "C", "TORCH_HOME": "/t", "HOME": str(tmp_path),
        "LD_LIBRARY_PATH": "/l", "CONSILIUM_HOME": "/c",
        "PYTHONPATH": f"{tmp_path}/lib:{tmp_path}", "TMPDIR": "/h",
        "PATH": f"{Path(sys.executable).parent}:/bin", "CONSILIUM_RUN": "mark",
        "CONSILIUM_ENDING": "/h/ending.json", "OMP_NUM_THREADS": "3", "no_proxy": "*",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8", "FLWR_TELEMETRY_ENABLED": "0",
        "RAY_USAGE_STATS_ENABLED": "0", "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    }  # fmt: skip
    assert expected.items() <= environment.items()


@pytest.mark.parametrize("home", [None, "/no/such/folder"])
def test_a_user_without_a_home(home: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME")
    monkeypatch.delenv("PATH")
    if home is not None:
        monkeypatch.setenv("HOME", home)
    environment = child_environment(Path("/h"), "mark", 1)
    assert environment["HOME"] == "/h"
    assert environment["PATH"].endswith(os.defpath.lstrip(":"))


def test_the_folder_is_short_ours_alone_and_gone_afterwards(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with short_folder() as home:
        assert not home.is_relative_to(long)
        assert home.stat().st_mode & 0o777 == 0o700
        assert list(home.iterdir()) == []
        with socket.socket(socket.AF_UNIX) as ray:  # as deep as Ray makes them
            ray.bind(str(home / ("s" * 70)))
        (home / "deep").mkdir()
    assert not home.exists()
    assert list(long.iterdir()) == []


def test_a_short_folder_of_the_users_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/dev/shm/")
    with short_folder() as home:
        assert home.parent == Path("/dev/shm")


@pytest.mark.parametrize(
    "tmpdir",
    [
        "/no/such",
        "relative",
        "/tmp/ü",
        "/tmp/a b",
        "/tmp/a\nb",
        "/tmp/a\x7fb",
        "/proc",
        "/dev/null",
    ],
)
def test_a_tmpdir_that_cannot_be_used_is_passed_over(
    tmpdir: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", tmpdir)
    with short_folder() as home:
        assert str(home.parent) in ("/tmp", "/var/tmp", f"/run/user/{os.getuid()}", "/dev/shm")


def test_when_no_folder_can_be_used_each_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    long = tmp_path / ("x" * 60)
    long.mkdir()
    monkeypatch.setattr(surroundings, "_places", lambda: [str(long), "/no/such", "/a b"])
    with pytest.raises(InputError) as caught:
        check_surroundings()
    said = str(caught.value)
    assert said.startswith(
        f"temporary files: found {long}: AF_UNIX path too long; /no/such: No such"
    )
    assert "allowed: one folder with a short name" in said
    assert said.endswith("Set TMPDIR to such a folder.")
    assert list(long.iterdir()) == []


def test_a_folder_without_space_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "NEEDED_BYTES", 1e30)
    with pytest.raises(InputError, match="/tmp: less than 100 MB free"):
        check_surroundings()


def test_a_good_machine_passes() -> None:
    before = {path.name for path in Path("/tmp").iterdir() if path.name.startswith("cs-")}
    check_surroundings()
    after = {path.name for path in Path("/tmp").iterdir() if path.name.startswith("cs-")}
    assert after <= before
