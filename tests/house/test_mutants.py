"""The list of mutants fits the source as it is; `python -m tests.mutants` plants them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from mutants.planting import KILLED, LIST, ROOT, SURVIVED, Copy, Mutant, listed, planted

MUTANTS = listed(LIST.read_text(encoding="utf-8"))


def test_every_mutant_can_be_planted_and_has_its_tests() -> None:
    for mutant in MUTANTS:
        assert planted(mutant) != (ROOT / mutant.file).read_text(encoding="utf-8"), mutant.name
        assert mutant.tests, mutant.name
        for name in mutant.tests:
            assert (ROOT / "tests" / name.partition("::")[0]).is_file(), (mutant.name, name)
    assert not [key for key, count in Counter((one.file, one.name) for one in MUTANTS).items() if count > 1]


def test_the_list_reaches_what_decides_and_what_counts() -> None:
    assert len(MUTANTS) >= 100
    assert len({one.file for one in MUTANTS}) >= 30


SMALL = """== two.py
   test_two.py test_more.py

# not two
- return 2
+ return 3

# two lines
- def two():
-     return 2
+ def two():
+
+     return 1
"""


def test_a_list_is_read_line_by_line() -> None:
    first, second = listed(SMALL)
    assert first == Mutant("not two", "two.py", ("test_two.py", "test_more.py"), "return 2", "return 3")
    assert (second.old, second.new) == ("def two():\n    return 2", "def two():\n\n    return 1")
    with pytest.raises(ValueError, match="line 1 of the list of mutants is neither of"):
        listed("return 2")


@pytest.fixture
def small(tmp_path: Path) -> Copy:
    (tmp_path / "tests").mkdir()
    (tmp_path / "two.py").write_text("def two():\n    return 2\n")
    (tmp_path / "tests/test_two.py").write_text("from two import two\n\ndef test_two():\n    assert two() == 2\n")
    (tmp_path / "tests/test_more.py").write_text("from two import two\n\ndef test_more():\n    assert two() > 1\n")
    return Copy(tmp_path)


def test_who_is_noticed_is_killed_and_who_is_not_survives(small: Copy) -> None:
    mutant = listed(SMALL)[0]
    sound = (small.root / "two.py").read_text()
    with small.holding(mutant):
        assert small.verdict(mutant.tests, 60)[0] == KILLED
        assert small.verdict(["test_more.py"], 60)[0] == SURVIVED
    assert (small.root / "two.py").read_text() == sound
    assert small.verdict(mutant.tests, 60)[0] == SURVIVED
    endless = mutant._replace(new="while True: pass")
    with small.holding(endless):
        verdict, told = small.verdict(["test_two.py"], 3)
    assert (verdict, told) == (KILLED, "still computing after 3 s")


@pytest.mark.parametrize(
    ("changed", "error", "told"),
    [
        ({"old": "return 3"}, LookupError, "'return 3' is 0 times in two.py, not once"),
        ({"old": "two"}, LookupError, "'two' is 2 times in two.py, not once"),
        ({"file": "three.py"}, LookupError, "there is no three.py"),
        ({"new": "return ("}, SyntaxError, "never closed"),
    ],
)
def test_a_list_out_of_date_says_so(small: Copy, changed: dict[str, str], error: type[Exception], told: str) -> None:
    (small.root / "two.py").write_text("def two():\n    return 2  # two\n")
    with pytest.raises(error, match=told):
        planted(listed(SMALL)[0]._replace(**changed), small.root)
