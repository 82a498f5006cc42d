"""The YAML files of this product (plans, site.yaml, studies), read strictly by one reader.

YAML has many ways to mean something else than what stands there. This reader takes the part of
it that everybody reads alike, and refuses the rest with its line: a key given twice, aliases
and merge keys, tags, several documents, keys that are not words. Words are read as in YAML 1.2:
`off` is a word, `1e-5` a number, a date is text. Imports neither torch nor Flower.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from common.errors import InputError, PlanError, Problem

MAX_BYTES = 262_144  # 256 KiB: fifty times the longest plan
MAX_NODES = 10_000  # keys, values and lists; a plan with lists for 1,000 sites has 3,500
MAX_DEPTH = 20
_TAG = "tag:yaml.org,2002:"
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")  # but tab and newline
_PLAIN = {
    "null": (r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    "bool": (r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    "int": (r"[-+]?(0|[1-9]\d*)", list("-+0123456789")),
    "float": (
        r"[-+]?((0|[1-9]\d*)(\.\d*)?|\.\d+)([eE][-+]?\d+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
}


def _resolvers() -> dict[str, list[tuple[str, re.Pattern[str]]]]:
    """What a plain word may be, by its first letter; the first that matches counts."""
    table: dict[str, list[tuple[str, re.Pattern[str]]]] = {}
    for kind, (pattern, firsts) in _PLAIN.items():
        for first in firsts:
            table.setdefault(first, []).append((_TAG + kind, re.compile(rf"(?:{pattern})\Z")))
    return table


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader without the parts of YAML that are refused here."""

    yaml_implicit_resolvers = _resolvers()

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth, self._nodes = 0, 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Every node passes here, and is refused before anything is built from it."""
        event = self.peek_event()  # type: ignore[no-untyped-call]
        anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent):
            raise _refused(event, f"an alias (*{anchor})", "values that are written out")
        if anchor is not None:
            raise _refused(event, f"an anchor (&{anchor})", "values that are written out")
        if tag is not None:
            raise _refused(event, f"a tag ({tag})", "values without a tag")
        if self._depth >= MAX_DEPTH:
            raise _refused(event, "more levels", f"at most {MAX_DEPTH} levels")
        if self._nodes >= MAX_NODES:
            found = f"more than {MAX_NODES:,} keys and values"
            raise _refused(event, found, f"at most {MAX_NODES:,} in a file")
        self._nodes += 1
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


class _RefusedError(yaml.YAMLError):
    """A part of YAML that is not read here: its line, what it is, and what is allowed."""

    def __init__(self, line: int, found: str, allowed: str) -> None:
        super().__init__()
        self.line, self.found, self.allowed = line, found, allowed


def _refused(event: yaml.Event, found: str, allowed: str) -> _RefusedError:
    return _RefusedError(_line(event), found, allowed)


def _line(part: yaml.Event | yaml.Node) -> int:
    """The line in which it begins, from 1."""
    return 1 if part.start_mark is None else part.start_mark.line + 1


def read_mapping(
    path: Path,
    keys: str,
    error: type[InputError] = PlanError,
    next_step: str = "Start from simulations/plans.",
) -> dict[str, Any]:
    """The mapping in a YAML file: its keys are words; its values are str, int (64 bits), finite
    float, bool, None, and lists and mappings of them.

    keys: of what it is a mapping, for the error; next_step: for a file that holds none.
    Raises `error` when the file cannot be read, is above MAX_BYTES, or holds anything else, with
    the line; every key that is given twice is named at once, with all its lines.
    """
    file = str(path)
    text = _text(path, keys, error)
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        problems = [] if root is None else list(_problems(root, (), file))
        raw = None if root is None or problems else loader.construct_document(root)
    except yaml.YAMLError as wrong:
        raise error(_not_read(wrong, text, file)) from None
    if problems:
        raise error(problems)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else f"a {type(raw).__name__}"
        raise error(Problem(file, "", found, f"a mapping of {keys}", next_step))
    return raw


def _text(path: Path, keys: str, error: type[InputError]) -> str:
    """The file's text. Raises `error` when there is no such file, or no text in it."""
    file = str(path)
    try:
        with path.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
    except (OSError, ValueError) as wrong:  # ValueError: a path with a zero byte
        reason = getattr(wrong, "strerror", None) or str(wrong) or type(wrong).__name__
        problem = Problem(file, "", reason, f"a readable YAML file of {keys}", "Check the path.")
        raise error(problem) from None
    if len(data) > MAX_BYTES:
        found, allowed = f"a file of more than {MAX_BYTES // 1024} KiB", f"a YAML file of {keys}"
        raise error(Problem(file, "", found, allowed, "Check the path."))
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = data.count(b"\n", 0, wrong.start) + 1
        found = f"the byte 0x{data[wrong.start]:02x}, which is not UTF-8"
        step = "Save it as UTF-8."
        raise error(Problem(file, f"line {line}", found, "text in UTF-8", step)) from None


def _not_read(wrong: yaml.YAMLError, text: str, file: str) -> Problem:
    """PyYAML's error in our words, with the line."""
    if isinstance(wrong, _RefusedError):
        return Problem(file, f"line {wrong.line}", wrong.found, wrong.allowed, "Write it plainly.")
    if isinstance(wrong, yaml.reader.ReaderError):
        line = text.count("\n", 0, wrong.position) + 1
        found = f"the control character U+{ord(text[wrong.position]):04X}"
        return Problem(file, f"line {line}", found, "text", "Remove it.")
    mark = getattr(wrong, "problem_mark", None)
    reason = " ".join((getattr(wrong, "problem", None) or str(wrong)).split())
    line = 1 if mark is None else mark.line + 1
    at = f"line {line}"
    if "'\\t'" in reason:
        return Problem(file, at, "a tab", "spaces, before a key or value", "Replace the tab.")
    if "another document" in reason:
        return Problem(file, at, "a second document", "one document a file", "Take it out.")
    found = f"text that is not YAML ({reason})"
    return Problem(file, at, found, "a YAML mapping", "Mend the line, or the one before it.")


def _problems(root: yaml.Node, path: tuple[str, ...], file: str) -> Iterator[Problem]:
    """Every key that is no word or is given twice, and every value that is out of range."""
    if isinstance(root, yaml.SequenceNode):
        for number, item in enumerate(root.value):
            yield from _problems(item, (*path, str(number)), file)
    elif isinstance(root, yaml.MappingNode):
        lines: dict[str, list[int]] = {}
        for key, value in root.value:
            line = _line(key)
            if key.tag != _TAG + "str":
                word = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                step = 'Name the key as the documents do, or put it in quotes: "1".'
                yield Problem(file, f"line {line}", f"{word!r} as a key", "a word", step)
                continue
            yield from _problems(key, (*path, key.value), file)
            lines.setdefault(key.value, []).append(line)
            yield from _problems(value, (*path, key.value), file)
        for word, found in lines.items():
            if len(found) > 1:
                at, step = f"key {'.'.join((*path, word))!r}", "Keep one of them."
                where = " and ".join(f"in line {line}" for line in found[:5])
                where += f" and {len(found) - 5} more" if len(found) > 5 else ""
                yield Problem(file, at, f"a value {where}", "every key once", step)
    elif isinstance(root, yaml.ScalarNode):
        allowed = _out_of_range(root)
        if allowed:
            at = f"key {'.'.join(path)!r} in line {_line(root)}" if path else "line 1"
            found = root.value if len(root.value) <= 40 else root.value[:37] + "..."
            yield Problem(file, at, found, allowed, "Change the value.")


def _out_of_range(node: yaml.ScalarNode) -> str:
    """What is allowed instead of a value that no key of ours takes; "" for any other."""
    text = node.value
    if node.tag == _TAG + "int" and (len(text) > 20 or abs(int(text)) >= 2**63):
        return "a whole number below 2^63"
    if node.tag == _TAG + "float":
        word = text.lower().lstrip("+-")
        if word in (".inf", ".nan") or not math.isfinite(float(text)):
            return "a finite number"
    if node.tag == _TAG + "str" and _CONTROL.search(text):
        return "text without control characters"
    return ""
