"""The tables of claims: one list behind both, and no row that its command does not print."""

from __future__ import annotations

from pathlib import Path

import accuracy
import pytest
from accuracy import CLAIMS, PAGE, README, Claim, known, page_of, readme_rows, with_table

TEN = 10


def rows(text: str) -> list[list[str]]:
    return [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]


def test_the_page_lists_every_claim_and_readme_ten_of_them() -> None:
    page, readme = PAGE.read_text(encoding="utf-8"), README.read_text(encoding="utf-8")
    assert page == page_of(known(page))
    assert readme == with_table(readme, readme_rows(known(page)))
    assert [row[0].strip() for row in rows(page)[1:]] == [one.claim for one in CLAIMS]
    table = rows(readme_rows(known(page)))[1:]
    assert len(table) == TEN

    def plain(row: list[str]) -> list[str]:
        return [cell.replace("docs/", "").removesuffix(" ") for cell in row]

    all_rows = [plain(row[:3]) for row in rows(page)]
    for row in table:
        assert plain(row) in all_rows


def test_every_result_is_words_and_a_date_or_not_measured() -> None:
    for one in CLAIMS:
        result = known(PAGE.read_text(encoding="utf-8"))[one.claim]
        assert result.words.startswith(accuracy.NEVER) == (result.date == accuracy.NEVER), one.claim
        assert "**failed**" not in result.words, one.claim
        assert len({other.claim for other in CLAIMS}) == len(CLAIMS)


@pytest.fixture
def pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pages of their own, and the commands that are run."""
    for name, path in (("PAGE", PAGE), ("README", README)):
        copy = tmp_path / path.name
        copy.write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
        monkeypatch.setattr(accuracy, name, copy)
    monkeypatch.setattr("sys.argv", ["accuracy"])
    return []


def test_the_command_reads_what_is_printed(pages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = CLAIMS[1].claim, CLAIMS[2].claim
    claims = (
        Claim(first, ("sim a", "sim b"), lambda text: f"{accuracy.read(text, 'is ([0-9]+)')[1][0]:.0f} ms"),
        Claim(second, ("sim b",), lambda text: f"{accuracy.read(text, 'was ([0-9]+)')[0][0]:.0f} ms"),
        *(one for one in CLAIMS if one.result is None),
    )

    def run(command: str) -> str:
        pages.append(command)
        return f"it is {len(command) + len(pages)}"

    monkeypatch.setattr(accuracy, "run", run)
    monkeypatch.setattr(accuracy, "CLAIMS", claims)
    assert accuracy.main() == 1
    assert pages == ["sim a", "sim b"]
    results = known(accuracy.PAGE.read_text(encoding="utf-8"))
    assert results[first].words == "7 ms"
    assert results[second].words == "**failed**"
    assert {results[one.claim] == known(PAGE.read_text(encoding="utf-8"))[one.claim] for one in claims[2:]} == {True}


def test_a_command_that_fails_is_no_result() -> None:
    with pytest.raises(LookupError, match="sim no-such-command ends with 2: "):
        accuracy.run("sim no-such-command")
    with pytest.raises(LookupError, match="prints nothing like 'x'"):
        accuracy.read("y", "x")


def test_the_gate_fails_where_an_error_grows_by_more_than_a_point(
    pages: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Against the page as it lies in the tree, which it does not touch; what has no error is not run."""
    claims = [Claim(name, (f"sim {at}",), lambda text: f"TPOT {text} %, E2E -2.0 %") for at, name in enumerate("abc")]
    claims.append(Claim("d", ("sim never",), lambda text: "held 9 of 10 times"))
    monkeypatch.setattr(accuracy, "CLAIMS", claims)
    before = {one.claim: accuracy.Result("TPOT +1.0 %, E2E -2.0 %", "2026-11-30") for one in claims[:3]}
    page = page_of(before | {"d": accuracy.Result("held 9 of 10 times", "2026-11-30")})
    accuracy.PAGE.write_text(page, encoding="utf-8")
    printed = {"sim 0": "+1.9", "sim 1": "-2.1", "sim 2": "-0.2"}
    monkeypatch.setattr(accuracy, "run", lambda command: printed[command])
    monkeypatch.setattr("sys.argv", ["accuracy", "--gate"])
    assert accuracy.main() == 1
    assert capsys.readouterr().out.splitlines() == ["a: no worse", "b: worse: 2.1 % was 1 %", "c: no worse"]
    assert accuracy.PAGE.read_text(encoding="utf-8") == page
    printed["sim 1"] = "-2.0"
    assert accuracy.main() == 0


def test_what_bundled_rows_are_gated() -> None:
    """Live runs on a CPU and on an H200, which need nothing but the repository."""
    results = known(PAGE.read_text(encoding="utf-8"))
    gated = [one for one in CLAIMS if one.result and accuracy.errors(results[one.claim].words) and not one.needs]
    assert {command for one in gated for command in one.commands} == {
        "sim validate --recorded tests/data/validate_cpu",
        "sim validate --recorded docs/measured/h200-2026-11-29/live-run",
    }
