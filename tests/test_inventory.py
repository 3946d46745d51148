"""What the run store holds: listed whatever lies there, and deleted only where nobody asks for it any more."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from utils.course import inventory
from utils.course.cli import main
from utils.paths import cache_dir
from utils.profiles import load_profile
from utils.profiles.used import remember, remembered
from utils.sealed import seal
from utils.training.spec import RunSpec, run_specs


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A store of its own; returns a function that puts a finished run of a specification there."""
    # Where the packaged models are stays as it is: a specification has to know which weights it starts from.
    specs = run_specs(load_profile("smoke"), "ranks")
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    monkeypatch.setattr(inventory, "PROFILE_NAMES", ("smoke",))

    def add(spec: RunSpec) -> Path:
        folder = tmp_path / "runs" / spec.key
        folder.mkdir(parents=True)
        (folder / "result.json").write_text(json.dumps({
            "run": {"spec": spec.model_dump(mode="json"), "status": "done"}, "measured": {"metrics": []}}))
        seal(folder, about={"run": spec.key})
        return folder

    add.wanted = specs[0]
    return add


def with_batches_of(rows: int):
    """The smoke profile with other training, as a file of the reader's could have it."""
    smoke = load_profile("smoke")
    return smoke.model_copy(update={"training": smoke.training.model_copy(update={"batch_size": rows})})


def left(store) -> set[str]:
    return {path.name for path in (cache_dir() / "runs").iterdir() if path.is_dir()}


def test_a_run_of_an_unknown_profile_is_kept_until_it_is_asked_for(store, capsys):
    wanted, unknown = store.wanted, store.wanted.model_copy(update={"steps": 5})
    local = store.wanted.model_copy(update={"base": wanted.base.model_copy(update={"source": "local", "name": "x"})})
    for spec in (wanted, unknown, local):
        store(spec)
    assert main(["runs", "--prune"]) == 0
    assert f"kept 1 runs of which no profile is known ({unknown.key})" in capsys.readouterr().out
    assert left(store) == {wanted.key, unknown.key, local.key}
    assert main(["runs", "--prune", "--all"]) == 0
    assert left(store) == {wanted.key, local.key}
    assert main(["runs", "--prune", local.key]) == 0
    assert left(store) == {wanted.key} and not (cache_dir() / "runs" / f"{local.key}.lock").exists()
    assert main(["runs", "--prune", "nonsense"]) == 2 and main(["runs", "--all"]) == 2
    assert left(store) == {wanted.key}


def test_what_the_readers_own_profile_and_seeds_ask_for_is_kept(store):
    """Also with --all: a profile that was run from a file is recorded with its content, for the file may be gone."""
    mine = with_batches_of(3)
    remember(mine, (0,))
    remember(load_profile("smoke"), (77, 5))
    specs = [run_specs(mine, "ranks", (0,))[-1], *run_specs(load_profile("smoke"), "ranks", (77, 5))]
    plain = {spec.key for spec in run_specs(load_profile("smoke"), "ranks")}
    assert {spec.key for spec in specs}.isdisjoint(plain), "else the test says nothing"
    for spec in specs:
        store(spec)
    assert main(["runs", "--prune", "--all"]) == 0
    assert left(store) == {spec.key for spec in specs}


def test_what_only_an_older_version_of_a_profile_asked_for_goes(store, monkeypatch):
    old = with_batches_of(3)
    monkeypatch.setattr("utils.profiles.used._is_packaged", lambda content: True)
    remember(old, (0,))
    store(run_specs(old, "ranks", (0,))[0])
    store(store.wanted)
    assert main(["runs", "--prune"]) == 0
    assert left(store) == {store.wanted.key}


def test_a_run_that_another_process_is_at_is_kept(store, capsys):
    spec = store.wanted.model_copy(update={"steps": 5})
    folder = store(spec)
    with FileLock(folder.with_name(f"{spec.key}.lock")):
        assert main(["runs", "--prune", "--all"]) == 0
    assert f"kept {spec.key}: another process is at it" in capsys.readouterr().out and folder.exists()
    assert main(["runs", "--prune", "--all"]) == 0 and not folder.exists()


def test_what_was_set_aside_is_listed_and_goes(store, capsys):
    store(store.wanted)
    damaged = cache_dir() / "runs" / "damaged" / "0123-4"
    damaged.mkdir(parents=True)
    (damaged / "big").write_bytes(bytes(2**20))
    assert main(["runs"]) == 0
    assert "set aside as damaged: 0123-4, 1 MiB" in capsys.readouterr().out and damaged.exists()
    assert main(["runs", "--prune"]) == 0
    assert "deleted damaged/0123-4" in capsys.readouterr().out and not damaged.exists()


def test_a_file_among_what_was_set_aside_goes_too_and_what_is_gone_is_deleted(tmp_path):
    """A file manager's file there ended the pruning, and so did a second pruning at the same time."""
    (tmp_path / ".DS_Store").touch()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in (".DS_Store", "link", "gone"):
        inventory._remove(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["", "[]", "null", "7", "{}", '{"run": []}', "[" * 100_000, '{"run": {"spec": 3}}',
                                  "\0", '{"run": {"spec": {}}, "measured": {"metrics": {}}}',
                                  '{"run": {"spec": {"base": 1}}, "measured": {"metrics": [3]}}'])
def test_a_result_that_cannot_be_read_is_listed_and_kept(store, capsys, text):
    folder = store(store.wanted)
    (folder / "result.json").write_text(text)
    assert main(["runs"]) == 0
    assert "unreadable" in capsys.readouterr().out
    assert main(["runs", "--prune", "--all"]) == 0 and folder.exists()


def test_a_record_that_cannot_be_read_is_no_record(store):
    remember(load_profile("smoke"), (7,))
    remember(load_profile("smoke"), (7,))
    assert [(one.profile, one.seeds, one.own) for one in remembered()] == [(load_profile("smoke"), (7,), False)]
    for number, text in enumerate(["", "[]", '{"profile": {}}', "[" * 100_000]):
        (cache_dir() / "profiles" / f"{number}.json").write_text(text)
    assert len(remembered()) == 1
