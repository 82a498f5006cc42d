"""Flower's SuperLink as a child process of ours, on a free port of the loopback interface."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from common.errors import ConsiliumError
from common.home import SITES
from simulations.flower.ending import last_error, tail
from simulations.flower.surroundings import child_environment

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

    def __init__(
        self, home: Path, mark: str, resources: Resources, output: IO[bytes], sites: Path
    ) -> None:
        """Start it. sites: the folder of site folders, which its children find by themselves."""
        self._home, self._resources, self._output = home, resources, output
        self._environment = child_environment(home, mark, resources.threads) | {
            SITES: str(sites.resolve())
        }
        self._log_start = output.seek(0, os.SEEK_END)
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
        log = Path(self._output.name)
        error = last_error(tail(log, self._log_start)) or "none that it told"
        raise ConsiliumError(f"Flower's SuperLink did not start; last error: {error}; see {log}")

    def submit(self, app_dir: Path, config: dict[str, str | int], num_sites: int) -> str:
        """Hand the app over; returns the run's id. Raises ConsiliumError with Flower's words.

        config: strings of letters that need no quoting, as Flower's parser knows no escapes.
        """
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
            result = json.loads(answer[answer.index("{") :])
            if result["success"]:
                return str(result["run-id"])
        except (ValueError, KeyError):
            pass
        raise ConsiliumError(f"Flower did not accept the app: {' '.join(answer.split())}")

    def server_log(self, run_id: str) -> str:
        """What the server process has printed: Flower keeps it to itself."""
        return self._flower("log", run_id, "sim", "--show")

    def _flower(self, *arguments: str) -> str:
        """Run Flower's command line; what it says goes to our log as well."""
        try:
            answer = subprocess.run(
                [_program("flwr"), *arguments],
                env=self._environment,
                cwd=self._home,
                capture_output=True,
                stdin=subprocess.DEVNULL,
                encoding="utf-8",
                errors="replace",
                timeout=START_SECONDS,
            )
        except subprocess.TimeoutExpired:
            return f"no answer within {START_SECONDS:.0f} s"
        said = answer.stdout + answer.stderr
        with suppress(OSError):  # a full disk must not hide what is said
            self._output.write(said.encode())
            self._output.flush()
        return said


def _program(name: str) -> str:
    """Flower's program of the environment that runs us, whatever PATH says."""
    return str(Path(sys.executable).with_name(name))


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
