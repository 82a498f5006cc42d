"""The house rules of ARCHITECTURE.md, enforced: who may import whom, and how big a room is."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("common", "client", "server", "simulations")
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

MAY_IMPORT = {
    "common": {"common"},
    "client": {"common", "client"},
    "server": {"common", "server"},
    "simulations": {"common", "client", "server", "simulations"},
}
# A library that must stay at the edge, and the only modules that may import it.
EDGES = {
    "flwr": {
        "server/app.py",
        "server/records.py",
        "server/strategy.py",
        "client/app.py",
        "simulations/app.py",
    },
    "ray": set[str](),
    "opacus": {"client/privacy/accounting.py", "client/privacy/hooks.py"},
    "grpc": {"client/worker.py", "client/courier.py"},
}
MODULE_LINES, FUNCTION_LINES = 300, 60


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(path: Path) -> Iterator[str]:
    """Every module that a file imports, at any depth of nesting."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)}: imports are absolute here"
            yield node.module or ""


def test_there_are_modules_to_check() -> None:
    assert len(MODULES) > 40


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_packages_import_only_what_they_may(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    ours = {module.split(".")[0] for module in imports(path)} & {*PACKAGES, "tests"}
    assert ours <= MAY_IMPORT[package], f"{name(path)} imports {ours - MAY_IMPORT[package]}"


@pytest.mark.parametrize("library", EDGES)
def test_libraries_stay_at_the_edge(library: str) -> None:
    users = {name(p) for p in MODULES if any(m.split(".")[0] == library for m in imports(p))}
    assert users <= EDGES[library], f"{library} is imported by {users - EDGES[library]}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_rooms_are_not_crowded(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= MODULE_LINES, f"{name(path)} has {text.count(chr(10))} lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            assert lines <= FUNCTION_LINES, f"{name(path)}:{node.lineno} {node.name}: {lines} lines"


def test_top_level_statements_have_no_side_effects() -> None:
    """At import a module may define things; it may not print, open files or start anything."""
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
                pytest.fail(f"{name(path)}:{node.lineno} calls something at import")


@pytest.mark.parametrize("module", ["common.plan", "common.errors", "common.findings"])
def test_a_plan_is_read_without_torch_or_flower(module: str) -> None:
    code = f"import sys, {module}; sys.exit(any(m in sys.modules for m in ('torch', 'flwr')))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("module", ["client.site", "server.firewall", "simulations.baselines"])
def test_the_inside_works_without_flower(module: str) -> None:
    code = f"import sys, {module}; sys.exit('flwr' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_nothing_is_ignored_wholesale() -> None:
    """A suppressed finding names its rule, so that nobody silences more than meant."""
    for path in MODULES:
        for line in path.read_text().splitlines():
            for marker, named in (("# noqa", "# noqa:"), ("# type: ignore", "# type: ignore[")):
                assert marker not in line or named in line, f"{name(path)}: {line.strip()}"
