"""requirements.lock is complete: pip fetches what it lists and never has to look for more.

The lock is held against pyproject.toml (requirements, extras and groups) and against what the
installed packages themselves ask for, without a network. pip 23 gives up where a requirement
names an extra that the lock pins without it, so extras count as well.
"""

import re
import sys
import tomllib
from collections.abc import Callable, Iterable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

Requires = Callable[[str], Iterable[str]]


def entries(lock: str) -> dict[str, Requirement]:
    """The lock's entries by name. Fails on one that is not pinned by `==` and by a hash."""
    found: dict[str, Requirement] = {}
    for block in re.split(r"\n(?=\S)", re.sub(r"^\s*#.*\n", "", lock, flags=re.M).strip()):
        pin, *hashes = [part.strip() for part in block.replace("\\\n", "\n").split("\n")]
        requirement = Requirement(pin)
        assert re.fullmatch(r"==[^*,]+", str(requirement.specifier)), f"not pinned: {pin}"
        assert (requirement.url, requirement.marker) == (None, None), f"not a plain pin: {pin}"
        assert hashes, f"no hash: {pin}"
        for line in hashes:
            assert re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line), f"{pin}: {line}"
        name = canonicalize_name(requirement.name)
        assert name not in found, f"twice: {name}"
        found[name] = requirement
    return found


def asked(project: dict[str, Any]) -> list[str]:
    """All that pyproject.toml asks for: to run, to build, every extra and every group."""
    table = project["project"]
    parts = [table["dependencies"], project["build-system"]["requires"]]
    parts += [*table.get("optional-dependencies", {}).values()]
    parts += [*project.get("dependency-groups", {}).values()]
    return [requirement for part in parts for requirement in part]


def installed(name: str) -> Iterable[str]:
    """What an installed package asks for, its extras included, as its metadata says."""
    return distribution(name).requires or ()


def faults(project: dict[str, Any], lock: str, requires: Requires = installed) -> list[str]:
    """What a resolver would have to look for outside of the lock; and entries nobody asks for."""
    pins, found = entries(lock), []
    waiting = [(Requirement(text), "pyproject.toml") for text in asked(project)]
    reached: set[tuple[str, str]] = set()
    while waiting:
        requirement, asker = waiting.pop()
        name = canonicalize_name(requirement.name)
        pin = pins.get(name)
        if pin is None:
            found.append(f"{asker} asks for {requirement}: not in the lock")
            continue
        version = str(pin.specifier).removeprefix("==")
        if not requirement.specifier.contains(version, prereleases=True):
            found.append(f"{asker} asks for {requirement}: the lock has {version}")
        if missing := requirement.extras - pin.extras:
            found.append(f"{asker} asks for {requirement}: the lock lacks [{', '.join(missing)}]")
        for extra in ("", *requirement.extras):
            if (name, extra) in reached:
                continue
            reached.add((name, extra))
            for text in requires(name):
                inner = Requirement(text)
                if inner.marker is None or inner.marker.evaluate({"extra": extra}):
                    waiting.append((inner, name))
    needed = {name for name, _ in reached}
    found += [f"{name} is in the lock, and nobody asks for it" for name in pins.keys() - needed]
    return found


def test_nothing_is_left_to_a_resolver() -> None:
    assert faults(PROJECT, LOCK) == []


def test_what_is_installed_is_what_is_locked() -> None:
    for name, pin in entries(LOCK).items():
        assert pin.specifier.contains(distribution(name).version, prereleases=True), name


@pytest.mark.parametrize(
    ("was", "becomes", "says"),
    [
        (r"\ncoverage\[toml\]==", "\ncoverage==", "pytest-cov asks for coverage[toml]"),
        (r"\nflwr\[simulation\]==", "\nflwr==", "lacks [simulation]"),
        (r"\nmpmath==", "\nmathmp==", "sympy asks for mpmath"),
        (r"\npydicom==[^ ]+", "\npydicom==2.0", "asks for pydicom>=3.0: the lock has 2.0"),
        (r"\nmarkupsafe==[^ ]+", "\nmarkupsafe==1.0", "jinja2 asks for MarkupSafe>=2.0"),
    ],
)
def test_a_lock_with_a_hole_is_refused(was: str, becomes: str, says: str) -> None:
    holed, count = re.subn(was, becomes, "\n" + LOCK)
    assert count == 1
    assert any(says in fault for fault in faults(PROJECT, holed))


def test_an_entry_that_nobody_asks_for_is_told() -> None:
    more = LOCK + f"leftpad==1.0 \\\n    --hash=sha256:{'0' * 64}\n"
    assert faults(PROJECT, more) == ["leftpad is in the lock, and nobody asks for it"]


@pytest.mark.parametrize("part", ["dependencies", "extra", "group"])
def test_a_new_requirement_is_missed_wherever_it_stands(part: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    if part == "dependencies":
        project["project"]["dependencies"].append("leftpad>=1")
    elif part == "extra":
        project["project"].setdefault("optional-dependencies", {})["more"] = ["leftpad>=1"]
    else:
        project["dependency-groups"]["dev"].append("leftpad>=1")
    assert faults(project, LOCK) == ["pyproject.toml asks for leftpad>=1: not in the lock"]


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("a>=1 \\\n    --hash=sha256:" + "0" * 64, "not pinned"),
        ("a==1.* \\\n    --hash=sha256:" + "0" * 64, "not pinned"),
        ("a==1", "no hash"),
        ("a==1 \\\n    --hash=md5:" + "0" * 32, "a==1"),
    ],
)
def test_an_entry_that_is_not_pinned_is_refused(entry: str, says: str) -> None:
    with pytest.raises(AssertionError, match=re.escape(says)):
        entries(entry)


def test_the_lock_names_no_host() -> None:
    assert "://" not in LOCK
    assert not re.search(r"^\s*(--?(i|f|index|extra|find|trusted)\b)", LOCK, flags=re.M)


def test_the_makefile_asks_no_resolver() -> None:
    """Every line that installs leaves dependencies alone, and nothing is built in isolation."""
    text = re.sub(r"\\\n", " ", (ROOT / "Makefile").read_text())
    locked = re.search(r"^LOCKED := (.*)$", text, flags=re.M)
    assert locked is not None
    assert {"--no-deps", "--require-hashes", "--only-binary"} <= set(locked[1].split())
    lines = [line for line in text.splitlines() if "$(INSTALL) " in line]
    assert len(lines) == 2
    assert all("$(LOCKED)" in line or "--no-deps --no-build-isolation" in line for line in lines)


def test_this_is_the_python_that_the_lock_was_made_for() -> None:
    assert sys.version_info[:2] == (3, 11)
