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
# The rooms of a package from the top down: a module imports from its own room and those below.
# Rooms on one line are neighbours that do not know each other; a name is a folder or a module.
ROOMS = {
    "client": (
        ("__main__",),
        ("app", "cli"),
        ("answer",),
        ("site",),
        ("ward",),
        ("report", "border"),
        ("ledger",),
        ("privacy",),
        ("learning",),
        ("data",),
        ("settings", "notes"),
        ("policy",),
    ),
    "client.data": (
        ("holdings",),
        ("batches",),
        ("cache", "augment"),
        ("nih",),
        ("tables",),
        ("pixels",),
    ),
    "server": (
        ("__main__",),
        ("app", "cli"),
        ("report", "rounds"),
        ("arrivals",),
        ("records", "roster", "strategy"),
        ("run_folder", "firewall", "shares", "transport"),
    ),
    "simulations": (
        ("__main__",),
        ("app", "cli"),
        ("study",),
        ("bench", "privacy"),
        ("experiment",),
        ("flower",),
        ("partition", "phantom"),
    ),
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
    "opacus": {"client/privacy/bounds.py", "client/privacy/hooks.py"},
    "grpc": {"client/worker.py", "client/courier.py"},
}
MODULE_LINES, FUNCTION_LINES = 300, 60
SAME_LINES = 10  # so many in a row may not stand in two places


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


def room(package: str, module: str) -> str | None:
    """The room of `package` that a module lies in; None for one outside, or the package itself."""
    inside = module.removeprefix(f"{package}.")
    return inside.split(".")[0] if inside != module else None


@pytest.mark.parametrize("package", ROOMS)
def test_every_module_has_its_room(package: str) -> None:
    """A new folder or loose module is given a place here, or it is in the wrong place."""
    folder = ROOT / package.replace(".", "/")
    there = {p.stem if p.is_file() else p.name for p in folder.iterdir()}
    there -= {"__init__", "__pycache__", "plans", "studies"}
    assert there == {name for level in ROOMS[package] for name in level}


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_no_import_runs_upwards(path: Path) -> None:
    here = name(path).removesuffix(".py").replace("/", ".")
    for package, levels in ROOMS.items():
        mine = room(package, here)
        if mine is None or mine == "__init__":
            continue
        height = {n: level for level, names in enumerate(levels) for n in names}
        for module in imports(path):
            other = room(package, module)
            if other is not None and other != mine:
                assert height[other] > height[mine], f"{name(path)} imports {module}, above it"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=name)
def test_a_room_says_what_may_not_be_in_it(path: Path) -> None:
    says = ast.get_docstring(ast.parse(path.read_text())) or ""
    first, rest = says.split("\n", 1) if "\n" in says else (says, "")
    assert first.strip(), name(path)
    assert "Never here: " in rest.rsplit("\n\n", 1)[-1], f"{name(path)}: what may not be here?"


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


@pytest.mark.parametrize(
    "module", ["client.site", "server.firewall", "simulations.experiment.baselines"]
)
def test_the_inside_works_without_flower(module: str) -> None:
    code = f"import sys, {module}; sys.exit('flwr' in sys.modules or 'opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_nothing_is_ignored_wholesale() -> None:
    """A suppressed finding names its rule, so that nobody silences more than meant."""
    for path in MODULES:
        for line in path.read_text().splitlines():
            for marker, named in (("# noqa", "# noqa:"), ("# type: ignore", "# type: ignore[")):
                assert marker not in line or named in line, f"{name(path)}: {line.strip()}"


def code_lines(path: Path) -> list[tuple[int, str]]:
    """Number and text of a file's lines, less indents, imports, docstrings, comments, blanks."""
    text = path.read_text()
    passed_over = {
        number
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Import | ast.ImportFrom)
        or (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))
        for number in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    lines = ((number, line.strip()) for number, line in enumerate(text.splitlines(), 1))
    return [(n, line) for n, line in lines if line and line[0] != "#" and n not in passed_over]


def test_no_two_places_are_the_same() -> None:
    """What is written twice is mended once: one piece of code serves both places."""
    first: dict[tuple[str, ...], str] = {}
    for path in MODULES:
        lines = code_lines(path)
        for start in range(len(lines) - SAME_LINES + 1):
            run = tuple(line for _, line in lines[start : start + SAME_LINES])
            place = f"{name(path)}:{lines[start][0]}"
            assert run not in first, f"{place} stands again at {first[run]}:\n" + "\n".join(run)
            first[run] = place
