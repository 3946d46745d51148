"""The one cache of tables: what is read back is what was computed, or it is computed anew."""

import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from utils import tables
from utils.errors import CourseError
from utils.tables import cached_table, stored_table

SETTINGS = {"version": 1, "k": 10, "epsilons": (0.5, 0.8)}
FRAME = pd.DataFrame({
    "count": [1, 2, 2**62], "small": np.array([1, -2, 3], dtype=np.int8), "value": [0.1 + 0.2, -0.0, math.nan],
    "extreme": [math.inf, 5e-324, 1.7976931348623157e308], "single": np.array([1 / 3, math.nan, 2], dtype=np.float32),
    "text": ["", "NA", "None"], "word": ["nan", 'a,"b"\n\r\t', "  é∞ "], "some": ["x", None, ""],
    "passed": pd.array([True, None, False], dtype="boolean"), "sure": [True, False, True], "nothing": [None] * 3})


@pytest.fixture()
def path(tmp_path):
    return tmp_path / "measurements" / "spectrum.parquet"


def counted(frame: pd.DataFrame = FRAME):
    """A computation that knows how often it was asked for."""
    def compute() -> pd.DataFrame:
        compute.times += 1
        return frame.copy()

    compute.times = 0
    return compute


def assert_same(one: pd.DataFrame, other: pd.DataFrame) -> None:
    """Equal in names, kinds and every bit, the sign of zero included."""
    pd.testing.assert_frame_equal(one, other, check_exact=True)
    for name in one.columns[one.dtypes.map(pd.api.types.is_float_dtype)]:
        assert np.array_equal(np.signbit(one[name]), np.signbit(other[name]))


def test_the_first_answer_is_the_later_one(path):
    compute = counted()
    first, second = cached_table(path, SETTINGS, compute), cached_table(path, SETTINGS, compute)
    assert compute.times == 1
    assert_same(first, second)
    assert_same(first, stored_table(path, SETTINGS))
    assert_same(first, FRAME)


def test_an_empty_text_is_no_missing_one(path):
    table = cached_table(path, SETTINGS, counted())
    assert table["text"].tolist() == ["", "NA", "None"]
    assert table["some"].isna().tolist() == [False, True, False] and table["some"].tolist()[2] == ""


def test_a_table_without_rows_keeps_its_columns(path):
    empty = pd.DataFrame({"run": pd.Series(dtype=str), "count": pd.Series(dtype=int), "value": pd.Series(dtype=float)})
    assert_same(cached_table(path, SETTINGS, counted(empty)), empty)
    assert_same(cached_table(path, SETTINGS, counted()), empty)


def test_a_table_of_nothing_is_kept(path):
    compute = counted(pd.DataFrame())
    assert len(cached_table(path, SETTINGS, compute)) == len(cached_table(path, SETTINGS, compute)) == 0
    assert compute.times == 1


def test_the_index_is_dropped(path):
    table = cached_table(path, SETTINGS, counted(FRAME.set_index(pd.Index([7, 8, 9], name="odd"))))
    assert table.index.tolist() == [0, 1, 2] and "odd" not in table


@pytest.mark.parametrize("other", [{"version": 2}, {"epsilons": (0.5,)}, {"more": None}])
def test_other_settings_are_computed_anew(path, other, capsys):
    cached_table(path, SETTINGS, counted())
    compute = counted(FRAME.head(1))
    assert len(cached_table(path, SETTINGS | other, compute)) == compute.times == 1
    assert stored_table(path, SETTINGS) is None, "a file holds one table"
    assert capsys.readouterr().out == "", "nothing is damaged"


def test_a_file_under_another_name_is_not_this_one(path):
    cached_table(path, SETTINGS, counted())
    moved = path.replace(path.with_stem("other"))
    assert stored_table(moved, SETTINGS) is None


def test_a_file_of_another_runs_folder_is_not_this_ones_but_a_cache_may_be_moved(tmp_path):
    """A measurement that was copied from one run's folder into another's was believed."""
    mine, other, moved = (tmp_path / name / "measurements" / "norms.parquet" for name in ("a/key", "a/other", "b/key"))
    cached_table(mine, SETTINGS, counted())
    for copy in (other, moved):
        copy.parent.mkdir(parents=True)
        shutil.copy(mine, copy)
    assert stored_table(other, SETTINGS) is None and stored_table(moved, SETTINGS) is not None


@pytest.mark.parametrize("place", [Path.mkdir, os.mkfifo] if hasattr(os, "mkfifo") else [Path.mkdir])
def test_what_is_no_file_makes_room_for_the_table(path, capsys, place):
    path.parent.mkdir(parents=True, exist_ok=True)
    place(path)
    assert_same(cached_table(path, SETTINGS, counted()), FRAME)
    assert "it is no file" in capsys.readouterr().out and path.is_file()


def test_there_is_nothing_before_the_first(path):
    assert stored_table(path, SETTINGS) is None and not path.parent.exists()


@pytest.mark.parametrize("eighth", range(8))
def test_a_truncated_file_is_computed_anew(path, eighth, capsys):
    whole = cached_table(path, SETTINGS, counted())
    content = path.read_bytes()
    path.write_bytes(content[:len(content) * eighth // 8])
    compute = counted()
    assert_same(cached_table(path, SETTINGS, compute), whole)
    lines = capsys.readouterr().out.splitlines()
    assert compute.times == 1 and len(lines) == 1 and "spectrum.parquet is damaged" in lines[0]
    assert path.read_bytes() == content


def test_a_flipped_bit_anywhere_is_found(path, capsys):
    cached_table(path, SETTINGS, counted(FRAME[["value", "text"]]))
    content = path.read_bytes()
    for place in range(0, len(content), 7):
        spoiled = bytearray(content)
        spoiled[place] ^= 1 << place % 8
        path.write_bytes(spoiled)
        assert stored_table(path, SETTINGS) is None, place
    assert capsys.readouterr().out.count("damaged") == len(range(0, len(content), 7))


@pytest.mark.parametrize("junk", [b"", b"PAR1", b"# {}\na,b\n1,2\n", b"\xff" * 1000])
def test_another_kind_of_file_is_computed_anew(path, junk, capsys):
    path.parent.mkdir()
    path.write_bytes(junk)
    assert_same(cached_table(path, SETTINGS, counted()), FRAME)
    assert "damaged" in capsys.readouterr().out


def test_a_parquet_file_of_others_has_no_seal(path, capsys):
    path.parent.mkdir()
    FRAME.to_parquet(path)
    assert stored_table(path, SETTINGS) is None and "damaged" in capsys.readouterr().out


@pytest.mark.parametrize("moment", ["written", "synced"])
def test_a_kill_between_the_writes_leaves_the_old_file(path, moment, monkeypatch):
    before = cached_table(path, SETTINGS, counted())

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if moment == "written":
            patch.setattr("utils.files.os.fsync", killed)
        else:
            patch.setattr("utils.files.os.replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cached_table(path, SETTINGS | {"version": 2}, counted(FRAME.head(1)))
    assert_same(stored_table(path, SETTINGS), before)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.process
def test_a_process_that_dies_while_it_writes_leaves_nothing_to_read(path):
    story = ("import os, sys; from pathlib import Path; import pandas as pd; from utils import files, tables; "
             "files.os.fsync = lambda handle: os._exit(9); "
             "tables.cached_table(Path(sys.argv[1]), {}, lambda: pd.DataFrame({'a': [1]}))")
    assert subprocess.run([sys.executable, "-c", story, str(path)], check=False).returncode == 9
    assert not path.exists() and stored_table(path, {}) is None
    assert cached_table(path, {}, lambda: pd.DataFrame({"a": [2]}))["a"].tolist() == [2]


@pytest.mark.process
def test_two_processes_read_one_table(path):
    """Both may compute; each sees a whole table of its settings, and the file that stays is whole."""
    story = ("import sys; from pathlib import Path; import pandas as pd; from utils.tables import cached_table\n"
             "path = Path(sys.argv[1])\n"
             "for turn in range(60):\n"
             "    table = cached_table(path, {'turn': turn % 3}, lambda: pd.DataFrame({'a': [turn % 3] * 5000}))\n"
             "    assert table['a'].tolist() == [turn % 3] * 5000\n")
    both = [subprocess.Popen([sys.executable, "-c", story, str(path)], stdout=subprocess.PIPE, text=True)
            for _ in range(2)]
    for one in both:
        said, _ = one.communicate(timeout=120)
        assert one.returncode == 0 and said == "", "no half-written file was taken for a damaged one"
    assert stored_table(path, {"turn": 2})["a"].tolist() == [2] * 5000
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize(("values", "kind"), [([{"a": 1}, None], "dict"), ([None, [1]], "list"),
                                              ([np.zeros(2)], "ndarray"), ([(1, 2)], "tuple")])
def test_what_is_no_plain_value_is_refused(path, values, kind):
    table = pd.DataFrame({"odd": pd.Series(values, dtype=object)})
    with pytest.raises(CourseError, match=f"in column 'odd' of the table 'spectrum', got a {kind}; do turn"):
        cached_table(path, SETTINGS, counted(table))
    assert not path.exists()


@pytest.mark.parametrize("values", [[1, "a"], [True, 2], ["a", 1.5]])
def test_a_column_of_two_kinds_is_refused(path, values):
    table = pd.DataFrame({"odd": pd.Series(values, dtype=object)})
    with pytest.raises(CourseError, match="Expected columns of one kind each in the table 'spectrum', got .*odd"):
        cached_table(path, SETTINGS, counted(table))


def test_a_number_that_no_column_holds_is_refused(path):
    with pytest.raises(CourseError, match="in the table 'spectrum', got one that Parquet cannot hold .*too large"):
        cached_table(path, SETTINGS, counted(pd.DataFrame({"large": [2**70]})))


def test_two_columns_of_one_name_are_refused(path):
    with pytest.raises(CourseError, match="Duplicate column names"):
        cached_table(path, SETTINGS, counted(pd.DataFrame([[1, 2]], columns=["a", "a"])))


def test_another_layout_of_the_file_is_computed_anew(path, monkeypatch):
    cached_table(path, SETTINGS, counted())
    monkeypatch.setattr(tables, "FORMAT", tables.FORMAT + 1)
    assert stored_table(path, SETTINGS) is None


def test_a_folder_that_cannot_be_written_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CourseError, match="could not be written"):
        cached_table(tmp_path / "file" / "a.parquet", SETTINGS, counted())
