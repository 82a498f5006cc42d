"""Flower's SuperLink as a child process of ours, on a free port of the loopback interface."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.errors import ConsiliumError
from simulations.processes import MARK

START_SECONDS = 120.0  # for the SuperLink, and again for the server process, to come up


@dataclass(frozen=True)
class Resources:
    """What a run may use.

    slots: sites that compute at the same time. Flower takes whole CPUs only, so a slot is one
    CPU in Ray's books, whatever share of the machine stands behind it.
    gpus, gpus_per_site: GPUs in all, and a site's share. threads: of one site.
    """

    slots: int
    gpus: int
    gpus_per_site: float
    threads: int


class SuperLink:
    """Our own SuperLink on a free port of the loopback interface."""

    def __init__(self, home: Path, mark: str, resources: Resources, output: IO[bytes]) -> None:
        self._home, self._resources, self._output = home, resources, output
        self._environment = _environment(home, mark, resources)
        port = _free_port()
        self._process = subprocess.Popen(
            [
                *(_program("flower-superlink"), "--insecure", "--simulation"),
                *("--host", "127.0.0.1", "--port", str(port)),
            ],
            cwd=home,
            env=self._environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        address = f"127.0.0.1:{port}"
        connection = f'[superlink]\ndefault="sim"\n[superlink.sim]\naddress="{address}"\n'
        (home / "config.toml").write_text(connection + "insecure=true\n")
        self._health = f"http://{address}/health"

    def __enter__(self) -> "SuperLink":
        self._wait_for_health()
        return self

    def __exit__(self, *error: object) -> None:
        """End the SuperLink itself; what it has started is the reaper's business."""
        self._process.kill()
        self._process.wait()

    def _wait_for_health(self) -> None:
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                with opener.open(self._health, timeout=2):
                    return
            except OSError:
                time.sleep(0.1)
        self.__exit__()
        raise ConsiliumError(f"Flower's SuperLink did not start; see {self._output.name}")

    def submit(self, app_dir: Path, config: dict[str, str | int], num_sites: int) -> str:
        """Hand the app over; returns the run's id. Raises ConsiliumError with Flower's words."""
        need = self._resources
        federation = {
            "num-supernodes": num_sites,
            "client-resources-num-cpus": 1,
            "client-resources-num-gpus": need.gpus_per_site,
            "init-args-num-cpus": need.slots,
            "init-args-num-gpus": need.gpus,
        }
        answer = self._flower(
            *("run", str(app_dir), "sim", "--format", "json"),
            *("--run-config", " ".join(f"{k}={json.dumps(v)}" for k, v in config.items())),
            *("--federation-config", " ".join(f"{k}={v}" for k, v in federation.items())),
        )
        try:
            result = json.loads(answer.stdout[answer.stdout.index("{") :])
            if result["success"]:
                return str(result["run-id"])
        except (ValueError, KeyError):
            pass
        words = " ".join((answer.stdout + answer.stderr).split())
        raise ConsiliumError(f"Flower did not accept the app: {words}")

    def save_log(self, run_id: str) -> None:
        """Append to our log what the server process has printed: Flower keeps it to itself."""
        self._flower("log", run_id, "sim", "--show")

    def _flower(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run Flower's command line; what it says goes to our log as well."""
        answer = subprocess.run(
            [_program("flwr"), *arguments],
            env=self._environment,
            cwd=self._home,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=START_SECONDS,
        )
        self._output.write((answer.stdout + answer.stderr).encode())
        self._output.flush()
        return answer


def _environment(home: Path, mark: str, resources: Resources) -> dict[str, str]:
    local = "127.0.0.1,localhost"
    no_proxy = ",".join(filter(None, (os.environ.get("NO_PROXY"), local)))
    return os.environ | {
        MARK: mark,
        # Flower starts its helpers by name.
        "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", ""))),
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # which also binds Ray to loopback
        "RAY_TMPDIR": str(home),
        "OMP_NUM_THREADS": str(resources.threads),
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # without it, deterministic PyTorch refuses CUDA
        "NO_PROXY": no_proxy,
        "no_proxy": no_proxy,
    }


def _program(name: str) -> str:
    """Flower's program of the environment that runs us, whatever PATH says."""
    return str(Path(sys.executable).with_name(name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
