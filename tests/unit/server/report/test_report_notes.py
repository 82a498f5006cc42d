"""The section of the report that says what a person should know of the data."""

from pathlib import Path

import pytest

from common.errors import InputError
from server.report.page import write_report


def page_of(folder: Path, **summary: object) -> str:
    return write_report({"status": "completed"} | summary, [], folder).read_text()


def test_remarks_are_a_section_of_their_own(tmp_path: Path) -> None:
    page = page_of(tmp_path, remarks=["3 images <b>bold</b>: a & b", "[red]x[/red]"])
    section = page.split("<h2>Notes on the data</h2>")[1].split("</section>")[0]
    assert "<li>3 images &lt;b&gt;bold&lt;/b&gt;: a &amp; b</li>" in section
    assert "<li>[red]x[/red]</li>" in section
    assert section.count("<li>") == 2


@pytest.mark.parametrize("summary", [{}, {"remarks": []}])
def test_without_remarks_there_is_no_section(tmp_path: Path, summary: dict[str, object]) -> None:
    assert "Notes on the data" not in page_of(tmp_path, **summary)


def test_a_run_that_failed_says_them_too(tmp_path: Path) -> None:
    page = page_of(tmp_path, status="failed", reason="no luck", remarks=["something odd"])
    assert "<li>something odd</li>" in page


def test_remarks_of_another_shape_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="remarks"):
        page_of(tmp_path, remarks="one text")
