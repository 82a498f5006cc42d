"""What the documents name is there: files, functions, tests, options, keys, links."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

from client.settings import SiteSettings
from common.plan import Plan
from simulations.cli import app as simulations
from tests.documents import PAGES, PROGRAMS, ROOT, TOOLS, Block, blocks, name, spans

README = ROOT / "README.md"
PACKAGES = ("common", "client", "server", "simulations", "tests")
REFERENCE = re.compile(rf"((?:{'|'.join(PACKAGES)})/[\w./*-]+)(?:::?([\w.]+))?")


@cache
def defined(path: Path) -> set[str]:
    """Names that a module defines, those within its classes as Class.name."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node]
        for target in targets:
            own = getattr(target, "name", None) or getattr(target, "id", None)
            found |= {own} if own else set()
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if hasattr(part, "name")}
    return found


def section(heading: str) -> str:
    """The README from a heading to the next."""
    return README.read_text().split(f"\n## {heading}\n")[1].split("\n## ")[0]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_files_and_functions_that_are_named_exist(path: Path) -> None:
    for text, line in spans(path):
        match = REFERENCE.fullmatch(text)
        if match is None:
            continue
        file, own = match.groups()
        assert list(ROOT.glob(file.rstrip("/"))), f"{name(path)}:{line}: no {file}"
        if own is not None:
            assert own in defined(ROOT / file), f"{name(path)}:{line}: no {own} in {file}"


def test_every_test_that_stands_behind_a_promise_exists() -> None:
    """docs/privacy.md names tests by file; `::name` alone is in the file named before it."""
    files = {path.name: path for path in (ROOT / "tests").rglob("test_*.py")}
    file, count = "", 0
    for text, line in spans(ROOT / "docs" / "privacy.md"):
        match = re.fullmatch(r"(test_\w+\.py)?(?:::(test_\w+))?", text)
        if match is None:
            continue
        file, count = match[1] or file, count + 1
        assert file in files, f"docs/privacy.md:{line}: no {file}"
        if match[2]:
            assert match[2] in defined(files[file]), f"docs/privacy.md:{line}: no {text}"
    assert count > 25


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", path.read_text()):
        if "://" not in target:
            assert (path.parent / target).exists(), f"{name(path)}: no {target}"


def test_the_map_of_the_code_names_what_is_there() -> None:
    [tree] = [block.text for block in blocks(README) if block.text.startswith("common/")]
    package, count = "", 0
    for line in tree.splitlines():
        if not line.startswith(" "):
            package = line.split("/")[0]
        for file in re.findall(r"[\w/]+\.py\b|\b\w+/", line):
            there = list(ROOT.glob(file)) + list((ROOT / package).rglob(file))
            assert there, f"{package}: no {file}"
            count += 1
    assert count > 60


def test_options_of_run_and_partition() -> None:
    rows = re.findall(r"^\| (`--.*?) \|", section("Real data"), flags=re.M)
    told = {option for row in rows for option in re.findall(r"--[a-z-]+", row)}
    program = get_command(simulations)
    run, partition = (
        {o for p in program.commands[each].params for o in p.opts if o.startswith("--")}
        for each in ("run", "partition")
    )
    assert told == run
    assert partition == run - {"--resume"}


def snippets() -> list[Block]:
    return [block for path in PAGES for block in blocks(path) if block.language == "yaml"]


def test_keys_of_the_snippets_are_keys() -> None:
    plan, site = (yaml.safe_load(block.text) for block in snippets())
    read = Plan.model_validate({"name": "x"} | plan)
    assert (read.privacy.mode, read.privacy.epsilon) == ("dp-sgd", 8)
    settings = SiteSettings.model_validate({"name": "x", "cache": "cache"} | site)
    assert settings.policy.epsilon == 8


def test_every_block_that_holds_a_command_is_marked_as_sh() -> None:
    """Else nothing would try it."""
    for path in PAGES:
        for block in blocks(path):
            first = {line.split()[0] for line in block.text.splitlines() if line.strip()}
            assert block.language == "sh" or not first & (PROGRAMS | TOOLS), f"{name(path)}"
        for line in path.read_text().splitlines():
            assert not re.match(r"(    |\t)(consilium-|make |flwr |python )", line), line
