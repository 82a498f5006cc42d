"""YAML is read in one way only: what could mean two things is refused with its line."""

from pathlib import Path

import pytest

from common.errors import DataError, InputError, PlanError
from common.yaml_file import MAX_BYTES, read_mapping


def write(tmp_path: Path, text: str | bytes) -> Path:
    file = tmp_path / "x.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def refused(tmp_path: Path, text: str | bytes) -> str:
    """The message about the text, without the path that every line begins with."""
    file = write(tmp_path, text)
    with pytest.raises(PlanError) as caught:
        read_mapping(file, "test keys")
    assert all(str(problem).startswith(f"{file}: ") for problem in caught.value.problems)
    return str(caught.value).replace(f"{file}: ", "")


def test_words_numbers_and_text(tmp_path: Path) -> None:
    text = (
        "a: off\nb: yes\nc: 1e-5\nd: 010\ne: 12:30:00\nf: 2026-11-25\ng: 1_000\nh: -7\ni: .5\n"
        "j: true\nk: ~\nl:\nm: 'x'\nn: 0x1F\no: [1, {p: 2.5}]\nq: '<<'\nr: =\ns: 1.\nt: Null\n"
    )
    assert read_mapping(write(tmp_path, text), "test keys") == {
        "a": "off", "b": "yes", "c": 1e-5, "d": "010", "e": "12:30:00", "f": "2026-11-25",
        "g": "1_000", "h": -7, "i": 0.5, "j": True, "k": None, "l": None, "m": "x", "n": "0x1F",
        "o": [1, {"p": 2.5}], "q": "<<", "r": "=", "s": 1.0, "t": None,
    }  # fmt: skip


def test_json_and_a_byte_order_mark_and_any_letter(tmp_path: Path) -> None:
    file = write(
        tmp_path, b'\xef\xbb\xbf{"name": "\xc3\xbc \xf0\xa0\xae\xb7", "deep": {"a": 1}}\r\n'
    )
    assert read_mapping(file, "test keys") == {"name": "ü 𠮷", "deep": {"a": 1}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: 1\nb: 2\na: 3\n", "key 'a': found a value in line 1 and in line 3"),
        (
            "p:\n  epsilon: 1\n  q: {}\n  epsilon: 80\n",
            "key 'p.epsilon': found a value in line 2 and",
        ),
        ("a: 1\n'a': 1\n", "key 'a': found a value in line 1 and in line 2"),
        ("p: {a: 1, b: 2,\n a: 3}\n", "key 'p.a': found a value in line 1 and in line 2"),
        ("p:\n- a: 1\n- b: 1\n  b: 2\n", "key 'p.1.b': found a value in line 3 and in line 4"),
        ('{"a": 1, "a": 2}', "key 'a': found a value in line 1 and in line 1"),
        ("a: 1\n" * 9, "in line 4 and in line 5 and 4 more; allowed: every key once"),
    ],
)
def test_a_key_given_twice_is_named_with_its_lines(
    tmp_path: Path, text: str, expected: str
) -> None:
    assert expected in refused(tmp_path, text)


def test_all_keys_given_twice_are_told_at_once(tmp_path: Path) -> None:
    said = refused(tmp_path, "a: 1\nb: {c: 1, c: 2}\na: 2\n1: 2\n")
    assert [line.split(":")[0] for line in said.splitlines()] == ["key 'b.c'", "line 4", "key 'a'"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: &x 1\nb: *x\n", "line 1: found an anchor (&x); allowed: values that are written out"),
        ("a: 1\nb: *x\n", "line 2: found an alias (*x)"),
        ("a: &a [1]\nb: &b [*a,*a]\nc: [*b,*b]\n", "line 1: found an anchor (&a)"),
        ("a: 1\nb: !!python/object:os.system x\n", "line 2: found a tag (tag:yaml.org,2002:python"),
        ("a: !x 1\n", "line 1: found a tag (!x)"),
        ("a: !!binary aGk=\n", "found a tag (tag:yaml.org,2002:binary)"),
        ("a: 1\n---\nb: 1\n", "line 2: found a second document; allowed: one document a file"),
        ("a:\n\tb: 1\n", "line 2: found a tab; allowed: spaces"),
        ("a: 1\n1: 2\n", "line 2: found '1' as a key; allowed: a word"),
        ("true: 2\n", "line 1: found 'true' as a key"),
        ("~: 2\n", "line 1: found '~' as a key"),
        ("? [a]\n: 2\n", "found 'a list or mapping' as a key"),
        ("a: 1\nb: " + "[" * 4000, "line 2: found more levels; allowed: at most 20 levels"),
        ("a:\n  b: .nan\n", "key 'a.b' in line 2: found .nan; allowed: a finite number"),
        ("a: -.inf\n", "found -.inf; allowed: a finite number"),
        ("a: 1e999\n", "found 1e999; allowed: a finite number"),
        ("a: [1, 9223372036854775808]\n", "key 'a.1' in line 1: found 92233720368547758"),
        ("a: " + "9" * 5000, "found 9999999999999999999999999999999999999...; allowed: a whole"),
        ('a: "x\\0y"\n', r"key 'a' in line 1: found x\x00y; allowed: text without control"),
        ('a: "\\ud800"\n', r"found \ud800; allowed: text without control characters"),
        ('"a\\eb": 1\n', "allowed: text without control characters"),
        ("a: 1\nb: x\x07y\n", "line 2: found the control character U+0007"),
        ("a: [1\n", "line 2: found text that is not YAML (expected ',' or ']'"),
        ("a: b: c\n", "line 1: found text that is not YAML (mapping values"),
        ("- 1\n", "found a list; allowed: a mapping of test keys. Start from simulations/plans."),
        ("word\n", "found a str; allowed: a mapping"),
        ("", "found nothing; allowed: a mapping"),
        ("# only a comment\n", "found nothing; allowed: a mapping"),
        (b"a: 1\nb: caf\xe9\n", "line 2: found the byte 0xe9, which is not UTF-8"),
        ("a: 1\n".encode("utf-16"), "line 1: found the byte 0xff, which is not UTF-8"),
        ("#" * (MAX_BYTES + 1), "found a file of more than 256 KiB"),
    ],
)  # fmt: skip
def test_what_is_not_read(tmp_path: Path, text: str | bytes, expected: str) -> None:
    assert expected in refused(tmp_path, text)


def test_limits_themselves_are_read(tmp_path: Path) -> None:
    text = "a: 9223372036854775807\nb: -9223372036854775807\nc: 1e308\nd: " + "[" * 18 + "]" * 18
    assert read_mapping(write(tmp_path, text), "test keys")["a"] == 2**63 - 1


@pytest.mark.parametrize("name", [".", "none.yaml", "a\0b"])
def test_files_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(PlanError, match=r"allowed: a readable YAML file of test keys"):
        read_mapping(tmp_path / name, "test keys")


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(PlanError, match="more than 256 KiB"):
        read_mapping(Path("/dev/zero"), "test keys")


def test_the_caller_says_which_error_it_is(tmp_path: Path) -> None:
    kind: type[InputError] = DataError
    with pytest.raises(DataError, match=r"a mapping of letters\. Look again\."):
        read_mapping(write(tmp_path, ""), "letters", kind, "Look again.")
