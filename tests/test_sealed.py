"""Sealed folders: every kind of damage to every kind of file is found, set aside, said once, and made again."""

import errno
import json
import os
import shutil
import tempfile
import threading
from pathlib import Path

import pytest

from utils import sealed
from utils.errors import CourseError, os_error_in
from utils.files import fresh_folder, sweep
from utils.paths import ensure_dir, worded
from utils.sealed import MANIFEST, check, seal, sealed_folder, set_aside

FILES = {"config.json": b'{"a": 1}', "model.bin": bytes(range(256)) * 4, "deep/er/text.txt": b"words" * 20}
ABOUT = {"made from": "the parts", "version": 1}


def fill(folder: Path) -> None:
    for name, content in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*")
            if path.is_file() and path.name != MANIFEST}


def flip(path: Path, *, keeping_time: bool = False) -> None:
    before = path.stat()
    whole = bytearray(path.read_bytes())
    whole[len(whole) // 2] ^= 1
    path.write_bytes(whole)
    if keeping_time:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def swap(one: Path, other: Path) -> None:
    aside = one.with_name("aside")
    one.rename(aside)
    other.rename(one)
    aside.rename(other)


def replaced_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def replaced_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


HARMS = {
    "flipped": flip,
    "flipped, time put back": lambda path: flip(path, keeping_time=True),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "empty": lambda path: path.write_bytes(b""),
    "gone": Path.unlink,
    "a folder in its place": replaced_by_folder,
    "a pipe in its place": replaced_by_pipe,
    "a link into nowhere": lambda path: (path.unlink(), path.symlink_to("nowhere")),
    "one more": lambda path: path.with_name("stranger").write_text("of someone else"),
    "swapped": lambda path: swap(path, path.parents[path.as_posix().count("/er/") * 2] / "config.json"
                                 if path.name != "config.json" else path.with_name("model.bin")),
}


@pytest.fixture
def made(tmp_path):
    return sealed_folder(tmp_path / "a {brace} and ä" / "thing", fill, about=ABOUT)


def test_a_whole_folder_is_made_once_and_only_read_after(made):
    assert content(made) == FILES and check(made, about=ABOUT) is None
    assert sealed_folder(made, lambda _: pytest.fail("made a second time"), about=ABOUT) == made
    assert {path.name for path in made.parent.iterdir()} == {"thing", "thing.lock"}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", HARMS)
def test_every_damage_is_set_aside_said_in_one_sentence_and_made_again(made, capsys, name, harm):
    HARMS[harm](made / name)
    assert sealed_folder(made, fill, about=ABOUT) == made
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "thing is damaged (" in said and "set aside" in said and "made again" in said
    assert content(made) == FILES and check(made, about=ABOUT) is None
    assert len(list((made.parent / "damaged").iterdir())) == 1
    sealed_folder(made, lambda _: pytest.fail("made a second time"), about=ABOUT)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("text", ["", "{", "[1]", "null", '{"format": 1}', '{"format": 1, "about": null, "files": []}',
                                  '{"format": 1, "about": null, "leaving_out": [], "files": {"config.json": 3}}',
                                  '{"format": 1, "about": null, "leaving_out": [], "files": {"config.json": []}}',
                                  '{"format": 1, "about": null, "leaving_out": 3, "files": {}}', "\udcff",
                                  "[" * 100_000])
def test_a_damaged_manifest_is_damage(made, text):
    (made / MANIFEST).write_bytes(text.replace("null, \"l", json.dumps(ABOUT) + ", \"l").encode(errors="replace"))
    assert check(made, about=ABOUT)
    sealed_folder(made, fill, about=ABOUT)
    assert check(made, about=ABOUT) is None and content(made) == FILES


def test_each_wrong_byte_of_the_manifest_is_harmless(made):
    """Whatever it then says of the bytes, it never calls a changed file whole."""
    whole = (made / MANIFEST).read_bytes()
    flip(made / "model.bin")
    for place in range(0, len(whole), 3):
        changed = bytearray(whole)
        changed[place] ^= 1
        (made / MANIFEST).write_bytes(changed)
        assert check(made, about=ABOUT), place


def test_a_folder_made_for_something_else_is_not_taken(made):
    assert "something else" in check(made, about=ABOUT | {"version": 2})
    assert "something else" in check(made)


@pytest.mark.parametrize("place", ["absent", "file", "empty folder", "link into nowhere"])
def test_whatever_stands_in_the_place_is_moved_out_of_it(tmp_path, place):
    folder = tmp_path / "thing"
    {"absent": lambda: None, "file": lambda: folder.write_text("in the way"), "empty folder": folder.mkdir,
     "link into nowhere": lambda: folder.symlink_to("nowhere")}[place]()
    assert content(sealed_folder(folder, fill)) == FILES
    assert (tmp_path / "damaged").exists() == (place != "absent")


def test_bytes_are_summed_only_where_a_stamp_differs(made, tmp_path, monkeypatch):
    summed = []
    monkeypatch.setattr(sealed, "sha256_of", lambda path: summed.append(path.name) or "0" * 64)
    sealed._sha256.cache_clear()
    assert check(made, about=ABOUT) is None and summed == []
    os.utime(made / "model.bin")
    assert check(made, about=ABOUT) == "model.bin has other bytes" and summed == ["model.bin"]
    assert check(made, about=ABOUT) == "model.bin has other bytes" and summed == ["model.bin"], "once per process"


def test_a_copied_cache_is_summed_once_and_then_known(made, tmp_path, monkeypatch):
    copy = tmp_path / "copy"
    shutil.copytree(made, copy)
    assert check(copy, about=ABOUT) is None
    sealed._sha256.cache_clear()
    monkeypatch.setattr(sealed, "sha256_of", lambda path: pytest.fail("summed a second time"))
    assert check(copy, about=ABOUT) is None


def test_what_is_left_out_may_change_and_what_a_desktop_leaves_is_no_damage(tmp_path):
    fill(tmp_path)
    seal(tmp_path, leaving_out=("measurements", "note.txt"))
    (tmp_path / "measurements").mkdir()
    (tmp_path / "measurements" / "table").write_text("later")
    for name in ("note.txt", ".DS_Store", "deep/Thumbs.db", "deep/._text.txt", "text.txt~", ".nfs00000000012"):
        (tmp_path / name).write_text("later")
    assert check(tmp_path) is None
    (tmp_path / "deep" / "note.txt").write_text("only the one at the top was left out")
    assert check(tmp_path) == "deep/note.txt was not in it"


def test_a_write_that_did_not_end_is_no_part_of_it(tmp_path):
    """A kill left one in a run, the run was sealed with it, and a day later, when it was swept, it was damaged."""
    fill(tmp_path)
    half = tmp_path / "deep" / f".text.txt.{2**22 + 1}-0123abcd.part"
    half.write_text("half")
    seal(tmp_path)
    assert sweep(tmp_path, older_s=0.0) == 1 and check(tmp_path) is None
    (tmp_path / f".{MANIFEST}.{os.getpid()}-0123abcd.part").write_text("another process notes the new stamps")
    assert check(tmp_path) is None


def test_one_that_was_sealed_with_a_half_by_an_earlier_version_is_whole_without_it(tmp_path):
    fill(tmp_path)
    seal(tmp_path)
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["files"][".text.txt.12-0123abcd.part"] = ["0" * 64, 1, 1, 1, 1]
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    assert check(tmp_path) is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes")
def test_a_pipe_for_a_manifest_is_not_waited_for(made):
    replaced_by_pipe(made / MANIFEST)
    assert "no seal" in check(made)


def test_the_sentence_on_damage_is_one_line_whatever_the_files_are_called(tmp_path, capsys):
    fill(tmp_path / "thing")
    seal(tmp_path / "thing")
    (tmp_path / "thing" / "a\nb\x1b").touch()
    set_aside(tmp_path / "thing", check(tmp_path / "thing"))
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "\\x1b" in said


def test_others_may_read_it(tmp_path):
    def private(folder: Path) -> None:
        fill(folder)
        (folder / "model.bin").chmod(0o600)
        (folder / "deep").chmod(0o700)

    made = sealed_folder(tmp_path / "thing", private)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (made, *made.rglob("*"))}
    assert set(modes.values()) == {0o755, 0o644} and modes["model.bin"] == 0o644 and modes["deep"] == 0o755


@pytest.fixture
def shared():
    """A sealed folder where other users may look; pytest keeps its own folders private."""
    home = Path(tempfile.mkdtemp())
    home.chmod(0o755)
    yield sealed_folder(home / "cache" / "thing", fill, about=ABOUT)
    shutil.rmtree(home)


@pytest.fixture
def become_nobody():
    """Makes this process a user to whom nothing here belongs; root may do whatever it likes."""
    if not hasattr(os, "setresuid") or os.getuid() != 0:
        pytest.skip("only root can become someone else")
    yield lambda: os.setresuid(65534, 65534, 0)
    os.setresuid(0, 0, 0)


@pytest.mark.parametrize("name, mode", [("model.bin", 0), (MANIFEST, 0), ("deep", 0), (".", 0)])
def test_what_this_user_may_not_read_is_not_called_damaged(shared, become_nobody, capsys, name, mode):
    (shared / name).chmod(mode)
    become_nobody()
    with pytest.raises(CourseError, match=r"could not be read: Permission denied \(this user has no leave") as caught:
        sealed_folder(shared, fill, about=ABOUT)
    assert "damaged" not in str(caught.value) + capsys.readouterr().out


def test_a_class_reads_what_it_may_not_write(shared, become_nobody):
    os.utime(shared / "model.bin")  # so that its stamp has to be written anew, which is not possible either
    become_nobody()
    assert content(sealed_folder(shared, fill, about=ABOUT)) == FILES


def test_damage_that_may_not_be_moved_is_said_with_both(shared, become_nobody):
    flip(shared / "model.bin")
    become_nobody()
    with pytest.raises(CourseError, match="no leave|cannot be written"):
        sealed_folder(shared, fill, about=ABOUT)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), CourseError("no parts"), OSError(errno.ENOSPC, "No space left"),
                                   ValueError("odd")])
def test_a_build_that_fails_leaves_nothing(tmp_path, error):
    def half(folder: Path) -> None:
        fill(folder)
        raise error

    expected = CourseError if isinstance(error, OSError) else type(error)
    with pytest.raises(expected) as caught:
        sealed_folder(tmp_path / "thing", half)
    if isinstance(error, OSError):
        assert "the disk is full" in str(caught.value) and str(tmp_path / "thing") in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["thing.lock"]


def test_what_a_killed_build_left_is_gone_with_the_next_one(tmp_path):
    left = fresh_folder(tmp_path / "thing")
    (left / "half").write_bytes(b"of a model")
    assert content(sealed_folder(tmp_path / "thing", fill)) == FILES
    assert {path.name for path in tmp_path.iterdir()} == {"thing", "thing.lock"}


def test_a_lock_that_this_user_may_not_take_is_one_sentence(shared, become_nobody):
    shared.parent.chmod(0o777)
    lock = shared.parent / "other.lock"
    lock.touch()
    lock.chmod(0o600)
    become_nobody()
    with pytest.raises(CourseError, match="other could not be written: Permission denied"):
        sealed_folder(shared.parent / "other", fill)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_folder_on_a_full_disk_is_not_said_to_lack_rights(tmp_path, monkeypatch, number):
    def full(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(CourseError, match="the disk is full") as caught:
        ensure_dir(tmp_path / "cache")
    assert "access" not in str(caught.value)


def test_two_at_once_make_it_once(tmp_path):
    made = []

    def slow(folder: Path) -> None:
        made.append(folder)
        fill(folder)

    threads = [threading.Thread(target=sealed_folder, args=(tmp_path / "thing", slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 1 and check(tmp_path / "thing") is None


def test_set_aside_says_what_comes_of_it(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    aside = set_aside(tmp_path / "run", "result.json is missing", then="the run is done again")
    assert aside.is_dir() and aside.parent == tmp_path / "damaged" and not (tmp_path / "run").exists()
    assert "the run is done again." in capsys.readouterr().out


@pytest.mark.parametrize("number, words", [
    (errno.ENOSPC, "the disk is full"), (errno.EDQUOT, "the disk is full"), (errno.EACCES, "this user has no leave"),
    (errno.EPERM, "this user has no leave"), (errno.EROFS, "may only be read"), (errno.EIO, "Input/output error."),
    (errno.EMFILE, "Too many open files.")])
def test_errors_of_the_system_are_worded_as_what_they_are(number, words):
    sentence = worded(OSError(number, os.strerror(number)), Path("there/it.bin"), "written")
    assert sentence.startswith(f"there/it.bin could not be written: {os.strerror(number)}") and words in sentence
    assert ("full" in sentence) == (number in (errno.ENOSPC, errno.EDQUOT)) and "\n" not in sentence


def test_the_systems_error_is_found_in_a_librarys():
    from safetensors import SafetensorError

    assert os_error_in(SafetensorError("Error: I/O error: No space left on device (os error 28)")).errno == 28
    assert os_error_in(SafetensorError("header too large")) is None
