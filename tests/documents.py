"""What the documents hold: commands, references to code and tests, snippets of YAML."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "ARCHITECTURE.md")]
PAGES += sorted((ROOT / "docs").glob("*.md"))
PLANS = sorted((ROOT / "simulations").glob("plans/*.yaml"))
STUDIES = sorted((ROOT / "simulations").glob("studies/*.yaml"))
PROGRAMS = {"consilium-sim", "consilium-site", "consilium-server"}
TOOLS = {"make", "flwr", "python", "pip", "uv"}
SHELL = {"source", "export"}  # they prepare the shell for the commands after them

Words = tuple[str, ...]


@dataclass(frozen=True)
class Command:
    """A command in a document. beside: what a reader sees around it."""

    words: Words
    where: str
    beside: str

    @property
    def text(self) -> str:
        """The command as one line; the same command is the same text in every document."""
        return " ".join(self.words)


@dataclass(frozen=True)
class Block:
    """A fenced block. before: the text between it and the heading or block above."""

    language: str
    text: str
    line: int
    before: str


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path) -> list[Block]:
    text = path.read_text(encoding="utf-8")
    found, end = [], 0
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, flags=re.M | re.S):
        before = re.split(r"^#.*$", text[end : match.start()], flags=re.M)[-1]
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match[1], match[2], line, before))
        end = match.end()
    return found


def spans(path: Path) -> list[tuple[str, int]]:
    """Inline code outside of fenced blocks, its white space folded, and its line."""
    text = path.read_text(encoding="utf-8")
    bare = re.sub(r"^```.*?^```$", lambda m: "\n" * m[0].count("\n"), text, flags=re.M | re.S)
    return [
        (" ".join(match[1].split()), bare.count("\n", 0, match.start()) + 1)
        for match in re.finditer(r"`([^`]+)`", bare)
    ]


def commands() -> list[Command]:
    """Every command of every document: in fenced blocks, inline, and in the plans' comments."""
    return [c for path in PAGES for c in _of_page(path)] + [
        c for path in (*PLANS, *STUDIES) for c in _of_comments(path)
    ]


def mentions() -> list[Command]:
    """Commands that are named inline without an argument, such as `consilium-sim audit`."""
    return [c for path in PAGES for c in _inline(path) if _is_mention(c.words)]


def _of_page(path: Path) -> Iterator[Command]:
    for block in blocks(path):
        if block.language == "sh":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = tuple(shlex.split(line, comments=True))
                if words and words[0] not in SHELL:
                    yield Command(words, f"{name(path)}:{block.line}", block.before + line)
    yield from (command for command in _inline(path) if not _is_mention(command.words))


def _inline(path: Path) -> Iterator[Command]:
    for text, line in spans(path):
        first = text.split()[0] if text.strip() else ""
        if first in PROGRAMS | TOOLS and " " in text:
            yield Command(tuple(shlex.split(text)), f"{name(path)}:{line}", "")


def _is_mention(words: Words) -> bool:
    """Only lower-case names after the program, as in `make bench`: nothing is given to it."""
    return all(re.fullmatch(r"[a-z][a-z0-9-]*", word) for word in words)


def _of_comments(path: Path) -> Iterator[Command]:
    lines = path.read_text(encoding="utf-8").splitlines()
    said = "\n".join(line for line in lines if line.startswith("#"))
    for number, line in enumerate(lines, 1):
        if match := re.match(r"#\s+(consilium-\w+ .*)", line):
            yield Command(tuple(match[1].split()), f"{name(path)}:{number}", said)
