"""Files that are whole or absent: their rights, odd places, leftovers of killed writes, folders put in place whole."""

import errno
import os
import stat
import time
from pathlib import Path

import pytest

from utils import files
from utils.errors import CourseError, UsageError, one_line, reason_of
from utils.files import atomic_write, check_output, fresh_folder, read_json, replace_folder, share, sweep, write_text
from utils.paths import cache_dir, ensure_dir, settle

posix = pytest.mark.skipif(os.name != "posix", reason="rights, links and pipes are POSIX's")


@pytest.fixture
def umask():
    """A function that sets the umask until the test ends."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@posix
@pytest.mark.parametrize("mask, expected", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_a_files_rights_are_the_umasks(tmp_path, umask, mask, expected):
    """safetensors makes its files private, whoever asked."""
    import torch
    from safetensors.torch import save_file

    umask(mask)
    write_text(tmp_path / "text", "x")
    with atomic_write(tmp_path / "weights") as temporary:
        save_file({"a": torch.zeros(2)}, temporary)
    assert [mode(tmp_path / name) for name in ("text", "weights")] == [expected] * 2


@posix
def test_a_shared_folder_has_the_umasks_rights(tmp_path, umask):
    (tmp_path / "outside").touch(0o600)
    (tmp_path / "model" / "deep").mkdir(parents=True, mode=0o700)
    (tmp_path / "model" / "deep" / "weights").touch(0o600)
    (tmp_path / "model" / "link").symlink_to(tmp_path / "outside")
    umask(0o022)
    share(tmp_path / "model")
    assert mode(tmp_path / "model" / "deep") == 0o755 and mode(tmp_path / "model" / "deep" / "weights") == 0o644
    assert mode(tmp_path / "outside") == 0o600


@posix
@pytest.mark.parametrize("make, kind", [(Path.mkdir, "a folder"), (getattr(os, "mkfifo", None), "a pipe")])
def test_nothing_is_written_over_what_is_no_file(tmp_path, make, kind):
    make(tmp_path / "out")
    with pytest.raises(CourseError, match=f"out could not be written: it is {kind}"):
        write_text(tmp_path / "out", "x")
    with pytest.raises(UsageError, match=f"out is {kind}; give a file"):
        check_output(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@posix
def test_a_file_that_people_name_is_no_link(tmp_path):
    (tmp_path / "target").write_text("kept")
    (tmp_path / "link").symlink_to("target")
    for name in ("link", "/dev/null"):
        with pytest.raises(UsageError, match="is a (link|device); give a file to write"):
            check_output(tmp_path / name)
    for name in ("target", "new", "a/b/new"):
        assert check_output(tmp_path / name) == tmp_path / name
    assert not (tmp_path / "a").exists() and (tmp_path / "target").read_text() == "kept"


@pytest.mark.parametrize("refused, said", [("access", "not yours to write"), ("folder", "Read-only file system")])
def test_missing_rights_are_told_before_the_work(tmp_path, monkeypatch, refused, said):
    """Tests often run as root, whom no permission stops."""
    def full(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    (tmp_path / "out").touch()
    if refused == "access":
        monkeypatch.setattr(files.os, "access", lambda *_: False)
    else:
        monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    with pytest.raises(UsageError, match=said):
        check_output(tmp_path / "out")


@pytest.mark.parametrize("error, told", [
    (OSError(errno.ENOSPC, "No space left on device"), True), (ConnectionResetError(104, "reset"), False),
    (FileNotFoundError(errno.ENOENT, "No such file", "/another/file"), False), (OSError("no number"), False)])
def test_only_an_error_of_writing_is_called_one(tmp_path, error, told):
    """Also an error of reading another file, or of a download within the block, was "could not be written"."""
    with pytest.raises(CourseError if told else type(error)) as caught, atomic_write(tmp_path / "out"):
        raise error
    assert ("could not be written: No space left" in str(caught.value)) == told and list(tmp_path.iterdir()) == []


def test_what_a_killed_write_left_is_swept(tmp_path, monkeypatch):
    with atomic_write(tmp_path / "a" / "file") as temporary:
        own = temporary.name
    gone = own.replace(f".{os.getpid()}-", f".{2**22 + 1}-")
    old = time.time() - 90000
    left = {name: tmp_path / "a" / name for name in (gone, ".file.abcd1234.part", own, ".mine.part", "plain.part")}
    young = tmp_path / gone.replace("file", "young")
    for path in (*left.values(), young):
        path.write_text("half")
        if path is not young:
            os.utime(path, (old, old))
    monkeypatch.setattr(files.psutil.Process, "create_time", lambda self: old - 60)  # as if it had written its own
    assert sweep(tmp_path, recursive=False) == 0 and sweep(tmp_path / "none") == 0
    assert sweep(tmp_path) == 2
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"file", own, ".mine.part", "plain.part"}
    assert young.exists()
    monkeypatch.undo()
    assert sweep(tmp_path) == 1, "a younger process has only inherited the number"


def test_a_folder_is_put_in_place_whole(tmp_path):
    target = tmp_path / "base"
    target.mkdir()
    (target / "old").write_text("1")
    scratch = fresh_folder(target)
    (scratch / "new").write_text("2")
    assert fresh_folder(target) == scratch and list(scratch.iterdir()) == [], "what an attempt left goes"
    (scratch / "new").write_text("2")
    replace_folder(scratch, target)
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["base"]


def test_a_folder_that_cannot_be_put_in_place_changes_nothing(tmp_path, monkeypatch):
    """Killed between the two renames, the old content is put back by whoever comes next."""
    target, rename = tmp_path / "base", Path.rename
    target.mkdir()
    (target / "old").write_text("1")
    scratch = fresh_folder(target)

    def fails(path, other):
        if path == scratch:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, other)

    monkeypatch.setattr(Path, "rename", fails)
    with pytest.raises(CourseError, match="could not be replaced by .*Input/output error"):
        replace_folder(scratch, target)
    assert (target / "old").read_text() == "1"
    monkeypatch.undo()
    target.rename(files._aside(target))
    files.restore_folder(target)
    assert (target / "old").read_text() == "1" and not files._aside(target).exists()


@pytest.mark.parametrize("content, said", [(b"[" * 100_000, "is not JSON"), (b"\xff", "is not UTF-8"),
                                           (b"{", "is not JSON")])
def test_json_that_cannot_be_read(tmp_path, content, said):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(CourseError, match=said):
        read_json(tmp_path / "x.json")
    with pytest.raises(CourseError, match="no regular file"):
        read_json(tmp_path)


def test_any_text_becomes_one_line():
    odd = "a\nb\r\x1b[31m\udcff\u202e\x00 ε"
    assert one_line(odd) == r"a\nb\r\x1b[31m\udcff\u202e\x00 ε" and one_line(odd).isprintable()
    assert len(one_line("x" * 10_000)) < 1300 and one_line("x" * 10_000).count(" … ") == 1
    assert reason_of(OSError(2, "No such file", "x")) == "No such file" and reason_of(ValueError("a\n b")) == "a b"
    assert reason_of(KeyError()) == "KeyError"


def test_a_relative_folder_is_settled_before_another_process_needs_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_COURSE_CACHE", "here")
    settle()
    assert os.environ["LORA_COURSE_CACHE"] == str(tmp_path / "here") == str(cache_dir())
    monkeypatch.setenv("LORA_COURSE_CACHE", "~nobody9/x")
    with pytest.raises(UsageError, match="LORA_COURSE_CACHE is '~nobody9/x', which names no folder"):
        cache_dir()


@pytest.mark.parametrize("variable", ["LORA_COURSE_CACHE", "LORA_COURSE_REFERENCE", None])
def test_a_folder_that_cannot_be_written_names_what_moves_it(tmp_path, monkeypatch, variable):
    """It named the cache's variable whatever the folder was."""
    (tmp_path / "file").touch()
    if variable:
        monkeypatch.setenv(variable, str(tmp_path))
    with pytest.raises(CourseError) as caught:
        ensure_dir(tmp_path / "file" / "x")
    assert (f"or set {variable} to" in str(caught.value)) if variable else "or set" not in str(caught.value)
