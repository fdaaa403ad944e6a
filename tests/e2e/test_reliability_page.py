"""docs/reliability.md says which test shows what: the tests it names are there, and every row names one."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reliability.md").read_text()
NAMED = re.compile(r"`(test_\w+\.py)::(\w+|\*)`")


def rows() -> list[str]:
    """The lines of the tables, without their heads."""
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")]
    return [line for line in lines if not line.startswith(("| ---", "| area |", "| class of flaw |"))]


def has_test(text: str, name: str) -> bool:
    """Whether a file has the test; `*`: any."""
    beginning = "test_" if name == "*" else re.escape(name) + r"\("
    return re.search(r"^(async )?def " + beginning, text, re.M) is not None


def test_every_row_names_a_test() -> None:
    assert len(rows()) >= 20
    assert [row[:40] for row in rows() if not NAMED.search(row)] == []


def test_every_test_that_is_named_is_there() -> None:
    files = {path.name: path.read_text() for path in (ROOT / "tests").glob("*/test_*.py")}
    missing = [(file, test) for file, test in NAMED.findall(PAGE) if not has_test(files.get(file, ""), test)]
    assert missing == []


def test_the_commands_that_are_named_are_there() -> None:
    assert re.search(r"^soak:", (ROOT / "Makefile").read_text(), re.M)
    assert (ROOT / "benchmarks" / "gpu_session.py").is_file()
