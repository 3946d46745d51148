"""What changed since TRL 0.12: every row of the table against the installed libraries."""

import pytest
import torch

from utils.errors import UsageError
from utils.machine import device_name
from utils.profiles.schema import ModelReference
from utils.sources.models import resolve
from utils.studies.preferences import trl_changes as preferences_trl_changes
from utils.studies.preferences.trl_changes import CHANGES, Change, changes_table

HERE = [change for change in CHANGES if change.device in ("", device_name())]


@pytest.fixture(scope="module")
def table():
    torch.set_num_threads(1)
    return changes_table(resolve(ModelReference(source="packaged", name="small-decoder")).folder)


@pytest.mark.parametrize("place", range(len(HERE)), ids=[f"{change.what}: {change.old}" for change in HERE])
def test_it_ends_as_the_table_says(table, place):
    row, change = table.iloc[place], HERE[place]
    assert row["old"] == change.old and row["as_said"], row["found"]
    assert row["new_works"] is (True if change.new else None) or bool(row["new_works"]), row["new"]


def test_what_is_gone_has_nothing_in_its_place():
    import importlib.util

    for name in preferences_trl_changes._GONE:
        assert next(change for change in CHANGES if change.old.endswith(f" {name}")).new == ""
    for name in ("ppo", "xpo", "nash_md", "bco", "prm"):
        assert importlib.util.find_spec(f"trl.experimental.{name}") is None


@pytest.mark.parametrize("old, new, as_said, new_works", [
    ("int('one')", "int('1')", True, True), ("int('1')", "int('one')", False, False),
    ("len(1)", "1 == 2", False, False)])
def test_a_row_that_is_wrong_is_seen(old, new, as_said, new_works):
    row = preferences_trl_changes._row(Change("x", old, "ValueError", "invalid literal", new), {})
    assert (row["as_said"], row["new_works"]) == (as_said, new_works)


def test_a_line_that_should_run_and_does_not_is_seen():
    assert not preferences_trl_changes._row(Change("x", "len(1)", "", "", ""), {})["as_said"]
    assert preferences_trl_changes._row(Change("x", "len('a')", "", "", ""), {})["as_said"]


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(UsageError, match="holds no model; give the folder of a small causal model"):
        changes_table(tmp_path)
