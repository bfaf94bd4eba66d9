"""docs/teaching.md covers every notebook and names sections that exist."""

from __future__ import annotations

import re

import pytest

from cf_utils.core.files import ROOT
from cf_utils.harness import notebooks

TEXT = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")
AGENDAS, REST = TEXT.split("## The workshop copy and the key")
BELIEFS = REST.split("## Misconceptions")[1].split("\n## ")[0]
NUMBERS = [name[:2] for name in notebooks.paths()]


def read_rows(text: str) -> list[list[str]]:
    """The rows of all tables, as cells."""
    lines = [line for line in text.splitlines() if line.startswith("| ") and "---" not in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def read_markdown(number: str) -> str:
    cells = notebooks.read(notebooks.find(number)).cells
    return "\n".join(c.source for c in cells if c.cell_type == "markdown")


@pytest.mark.parametrize("number", NUMBERS)
def test_every_notebook_has_an_agenda_a_misconception_and_its_exercises_listed(number):
    rows = read_rows(AGENDAS)
    assert any(re.search(rf"\b{number}\b", row[-1]) for row in rows if len(row) == 3)
    assert any(re.search(rf"\b{number}\b", row[1]) for row in read_rows(BELIEFS))
    (overview,) = [row for row in rows if len(row) == 5 and row[0] == number]
    set_here = sorted(set(re.findall(r"\*\*Exercise (\d+\.\d+)\*\*", read_markdown(number))))
    assert overview[3].split(", ") == set_here
    (minutes,) = re.findall(r"\*\*Time\*\* (\d+) min", read_markdown(number))
    assert overview[2] == f"{minutes} min"


def test_sections_that_the_agendas_and_misconceptions_name_exist():
    missing = []
    for row in read_rows(AGENDAS) + read_rows(BELIEFS):
        where = row[-1]
        texts = [
            read_markdown(n) for n in dict.fromkeys(re.findall(r"\b\d\d\b", where)) if n in NUMBERS
        ]
        for title in re.findall(r'"([^"]+)"', where):
            if texts and not any(title in text for text in texts):
                missing.append((where, title))
    assert missing == []


def test_agendas_run_without_gaps():
    for table in re.split(r"\n## ", AGENDAS)[1:]:
        spans = [re.fullmatch(r"(\d+)–(\d+)", row[0]) for row in read_rows(table)]
        times = [tuple(map(int, span.groups())) for span in spans if span]
        assert times and times[0][0] == 0
        assert [end for _, end in times[:-1]] == [start for start, _ in times[1:]]
        assert all(start < end for start, end in times)
