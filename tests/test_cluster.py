"""Runs as tasks of a Ray cluster: the same weights as on one machine, whatever is killed, wherever the store lies."""

import shutil
import socket
import sys
import threading
import time
from types import SimpleNamespace

import psutil
import pytest
import ray.exceptions
import torch
from safetensors.torch import load_file, save_file

from utils.course.cli import main
from utils.course.own_cache import link_cache
from utils.errors import CourseError
from utils.files import sweep
from utils.profiles.schema import ModelReference
from utils.sealed import check
from utils.sources.models import resolve
from utils.training.cluster import archive, connection, engine, worker
from utils.training.cluster.engine import train_on_ray
from utils.training.cluster.worker import Answer, versions
from utils.training.outcomes import Account
from utils.training.plan import Costs, Planned, plan
from utils.training.spec import RunSpec
from utils.training.store import RunStore

LONG = 400  # steps of a run that is killed on its way


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A node of one core, whose workers have a cache that only they know by name; started once for the file."""
    if sys.platform == "win32":
        pytest.skip("Ray on Windows is a beta without clusters")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("RAY_USAGE_STATS_ENABLED", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
            patch.setenv(name, "")
            patch.delenv(name)  # what is set below goes with the fixture
        patch.setenv("LORA_COURSE_CACHE", str(link_cache(tmp_path_factory.mktemp("workers"))))
        connection.prepare(own=True)
        from ray.cluster_utils import Cluster

        started = Cluster(initialize_head=True, head_node_args={
            "num_cpus": 1, "object_store_memory": 80 * 2**20, "memory": 4 * 2**30, "include_dashboard": False})
        yield started
        started.shutdown()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The driver's own cache."""
    folder = link_cache(tmp_path / "cache")
    monkeypatch.setenv("LORA_COURSE_CACHE", str(folder))
    return folder


@pytest.fixture
def trained_alone(tmp_path):
    """Weights of runs as this process trains them with one thread, in a store of its own."""
    def weights(specs) -> dict:
        torch.set_num_threads(1)
        return {one.key: RunStore(tmp_path / "alone").get(one).trained() for one in specs}

    return weights


def assert_same(expected: dict, specs) -> None:
    for one in specs:
        found = RunStore().get(one).trained()
        assert found.keys() == expected[one.key].keys()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected[one.key].items()), one.label


# A cluster ------------------------------------------------------------------------------------------------------------


def kill_in_the_midst(raylet: int, resume, killed: list[int]) -> None:
    """Kill the worker that trains once its run has a point to go on from."""
    deadline = time.monotonic() + 120.0
    while not list(resume.glob("checkpoint-*")) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in psutil.Process(raylet).children(recursive=True):
        if process.name().startswith("ray::") and "seed 7" in " ".join(process.cmdline()):
            process.kill()
            killed.append(process.pid)


def overflowing(base, folder) -> dict:
    """Of a specification on a copy of a base whose first step is NaN."""
    shutil.copytree(base, folder)
    tensors = load_file(folder / "model.safetensors")
    save_file({name: torch.full_like(tensor, 1e38) if "query.weight" in name else tensor
               for name, tensor in tensors.items()}, folder / "model.safetensors", {"format": "pt"})
    reference = ModelReference(source="local", name=str(folder))
    return {"base": reference, "base_revision": resolve(reference).revision}


@pytest.mark.process
def test_what_a_cluster_trains_is_what_one_process_makes_though_a_worker_is_killed(cluster, cache, spec, trained_alone,
                                                                                   tiny_base):
    """A long run whose worker is killed, a chain, one that fails, one that diverges, and what waits for those."""
    long = spec(seed=7, steps=LONG, learning_rate=1e-3)
    chain, broken = spec(seed=1, start=spec()), spec(base_revision="0" * 16)
    diverged = spec(seed=3, **overflowing(tiny_base, cache / "overflowing"))
    fine, lost = [long, spec(), chain], [spec(start=broken, seed=4), spec(start=diverged, seed=4)]
    expected = trained_alone(fine)
    planned, lines, killed = plan([*fine, *lost], RunStore(), Costs()), [], []
    raylet = cluster.head_node.all_processes["raylet"][0].process.pid
    resume = cache / "runs" / long.key / "resume"
    killer = threading.Thread(target=kill_in_the_midst, args=(raylet, resume, killed))
    killer.start()
    outcomes = train_on_ray(planned, address=cluster.address, say=lines.append)
    killer.join()
    assert len(killed) == 1, "the worker was not killed in the midst of its run"
    assert set(outcomes.done) == {one.key for one in [*fine, diverged]}, outcomes
    assert "build the specification anew" in outcomes.failed[broken.key] and len(outcomes.failed) == 1
    assert set(outcomes.left_out) == {one.key for one in lost}
    assert_same(expected, fine)
    assert RunStore().get(diverged).diverged
    assert lines[0].startswith("7 runs to train on Ray, 1 at a time, machines: 1; about ") and len(lines) == 6
    assert not list(cache.glob(".cluster*")) and not list((cache / "logs").glob(f"{long.key}*"))


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="a folder that each process finds elsewhere takes /proc")
def test_a_store_that_is_not_shared_gets_its_results_sent(cluster, tmp_path, spec, trained_alone, monkeypatch):
    """The driver's cache lies where a worker finds another folder by the same name, as on another machine."""
    link_cache(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LORA_COURSE_CACHE", "/proc/self/cwd/mine")
    monkeypatch.setattr(engine, "connected", lambda address, workers: connection.connected(None, workers))
    monkeypatch.setattr(connection, "_own", lambda workers: {"address": cluster.address})
    first = spec(seed=11)
    second = spec(seed=12, start=first)
    expected, lines = trained_alone([first, second]), []
    RunStore().get(first)
    outcomes = train_on_ray(plan([second], RunStore(), Costs()), address=cluster.address, say=lines.append)
    assert set(outcomes.done) == {second.key}, outcomes
    assert "is not seen from" in lines[0] and "results are sent back here" in lines[0]
    assert check(tmp_path / "mine" / "runs" / second.key, about={"run": second.key}, thorough=True) is None
    assert_same(expected, [first, second])
    assert not list((tmp_path / "mine" / "arriving").iterdir())


# Archives -------------------------------------------------------------------------------------------------------------


def test_an_archive_arrives_whole_or_not_at_all(cache, spec, tmp_path):
    one = spec()
    run = RunStore().get(one)
    (run.folder / "measurements").mkdir()
    (run.folder / "measurements" / "spectrum.parquet").write_bytes(b"of this machine")
    packed, there = archive.pack(run.folder), tmp_path / "elsewhere"
    (there / "runs" / one.key / "resume").mkdir(parents=True)  # begun there, and not ended
    archive.unpack(packed, there, one.key)
    folder = there / "runs" / one.key
    assert archive.sealed(folder, one.key) and not (folder / "measurements").exists()
    assert RunStore(there / "runs").stored(one) and not (folder / "resume").exists()
    before = (folder / "SEAL.json").stat().st_ino
    archive.unpack(packed, there, one.key)
    assert (folder / "SEAL.json").stat().st_ino == before, "what is whole is left alone"

    weights = next(name for name in archive.sums(run.folder) if name.endswith(".safetensors"))
    path = run.folder / weights
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(CourseError, match=f"Run {one.key} did not arrive whole .*has other bytes.*start the same"):
        archive.unpack(archive.pack(run.folder), tmp_path / "third", one.key)
    with pytest.raises(CourseError, match="did not arrive whole"):
        archive.unpack(packed[:-100], tmp_path / "third", one.key)
    assert not (tmp_path / "third" / "runs" / one.key).exists()


# A worker, and the driver's account, without Ray ----------------------------------------------------------------------


def asked(one: RunSpec, **changes) -> worker.Asked:
    return worker.Asked(**{"key": one.key, "text": one.model_dump_json(), "like": versions(), "cache": "/none",
                           "token": "none", "starts": {}, "on_gpu": False} | changes)


def test_a_worker_with_other_code_or_without_a_start_trains_nothing(cache, spec, monkeypatch):
    monkeypatch.setattr(worker, "_trained", lambda *given: pytest.fail("it was trained"))
    other = worker.train(asked(spec(), like=versions() | {"code": "0" * 12, "torch": "1.0"}), fetch=bytes)
    assert "has code " in other.refused and f"torch {versions()['torch']}, not 1.0" in other.refused
    lacking = worker.train(asked(spec(seed=1, start=spec()), starts={spec().key: None}), fetch=bytes)
    assert lacking.lacks_starts and lacking.why is None
    broken = worker.train(asked(spec(seed=1, start=spec()), starts={spec().key: b"no archive"}), fetch=bytes)
    assert "did not arrive whole" in broken.why
    (cache / "token").touch()
    monkeypatch.setattr(worker, "_trained", lambda *given: -9)
    assert "exit -9 on " in worker.train(asked(spec(), token="token"), fetch=bytes).killed


def test_a_worker_knows_the_drivers_store_by_a_file_that_does_not_stay(cache, tmp_path, monkeypatch):
    name = engine._left_in(cache)
    assert worker._store(str(cache), name) == (cache, True)
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path / "mount"))  # the same disk by another name
    (tmp_path / "mount").symlink_to(cache)
    assert worker._store("/none", name) == (tmp_path / "mount", True)
    assert worker._store("/none", "other") == (tmp_path / "mount", False)
    monkeypatch.setattr("utils.files._is_writing", lambda writer, path: False)
    assert sweep(cache, recursive=False, older_s=-1.0) == 1, "a driver that was killed left it"


class _Ray:
    """Answers in the place of a cluster: one for each time that a run is asked for."""

    exceptions = ray.exceptions

    def __init__(self, answers):
        self.answers, self.kept, self.asked = answers, [], []

    def remote(self, **settings):
        return lambda call: self

    def options(self, **demands):
        def remote(name, given):
            self.asked.append((given, demands))
            return len(self.asked)

        return SimpleNamespace(remote=remote)

    def nodes(self):
        return [{"Alive": True, "NodeID": "a", "Resources": {"CPU": 2.0, "memory": 2.0 * 2**30}},
                {"Alive": False, "NodeID": "b", "Resources": {"CPU": 64.0, "memory": 1e12}}]

    def wait(self, references, num_returns, timeout):
        return references[:1], references[1:]

    def put(self, packed):
        self.kept.append(packed)
        return "reference"

    def get(self, reference):
        answer = self.answers[min(reference, len(self.answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        return vars(answer)


def driven(planned, answers, **settings):
    fake, lines = _Ray(answers), []
    driver = engine._Driver(fake, Account(planned, say=lines.append), token="token", workers=settings.get("workers"))
    driver.run()
    return fake, driver.account.outcomes, lines


WORKER, NODE = ray.exceptions.WorkerCrashedError(), ray.exceptions.NodeDiedError("the node died")


@pytest.mark.parametrize("answers, tries, sentence", [
    ([WORKER], 3, "3 times its worker was killed (The worker died"),
    ([ray.exceptions.OutOfMemoryError("no memory")], 3, "3 times its worker was killed"),
    ([NODE], 10, "10 times the machine that it was trained on was lost (the node died"),
    ([Answer("there", killed="exit -9 on there")], 3, "3 times its process was killed (exit -9 on there)"),
    ([WORKER, WORKER, NODE, Answer("there", why="its own sentence.")], 4, "its own sentence."),
    ([ray.exceptions.RayTaskError("call", "traceback", ValueError("unforeseen"))], 1, "unforeseen")])
def test_what_is_lost_is_tried_again_and_what_fails_is_not(cache, spec, answers, tries, sentence):
    one = Planned(spec(), 1.0, 9.0)
    fake, outcomes, _ = driven([one], answers)
    assert len(fake.asked) == tries and sentence in outcomes.failed[one.spec.key]
    assert all(demands["memory"] == 2 * 2**30 and demands["num_cpus"] == 1 for _, demands in fake.asked), "no more than"
    assert not outcomes.done


def test_a_start_is_sent_once_a_machine_does_not_see_the_store(cache, spec):
    RunStore().get(spec())
    waits = spec(seed=1, start=spec())
    answers = [Answer("late", lacks_starts=True), Answer("late", why="enough")]
    fake, outcomes, lines = driven(plan([waits], RunStore(), Costs()), answers)
    assert [given["starts"] for given, _ in fake.asked] == [{spec().key: None}, {spec().key: "reference"}]
    assert fake.kept == [archive.pack(RunStore().folder / spec().key)] and "is not seen from late" in lines[0]
    assert "enough" in outcomes.failed[waits.key]


def test_a_machine_with_other_code_ends_it_in_one_sentence(cache, spec):
    with pytest.raises(CourseError, match="cannot be trained on this cluster: x has code 1, not 2; install the same"):
        driven([Planned(spec(), 1.0, 1.0)], [Answer("x", refused="x has code 1, not 2")])


# Bad input ------------------------------------------------------------------------------------------------------------


def refused(capsys, *words: str) -> str:
    assert main(["train", "--profile", "smoke", *words]) in (1, 2)
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1
    return said


@pytest.mark.parametrize("words, sentence", [
    (["--engine", "slurm"], "invalid choice"), (["--address", "auto"], "add --engine ray"),
    (["--engine", "ray", "--address", "nowhere"], "is no address of a Ray cluster"),
    (["--engine", "ray", "--address", "host:0"], "is no address"),
    (["--engine", "ray", "--address", "http://host:8265"], "is no address")])
def test_bad_words_are_one_sentence(capsys, words, sentence):
    assert sentence in refused(capsys, *words)


@pytest.fixture
def one_run(monkeypatch, spec):
    """A profile that asks for one small run."""
    monkeypatch.setattr("utils.training.wanted.every_spec", lambda profile, seeds: {spec().key: spec()})


def test_ray_that_is_not_installed_is_named_with_its_extra(monkeypatch, capsys, cache, one_run):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert "pip install 'lora-vs-full-course[ray]'" in refused(capsys, "--engine", "ray")


@pytest.mark.process
@pytest.mark.parametrize("named", ["127.0.0.1:{port}", "ray://127.0.0.1:{port}", "auto"])
def test_an_address_that_nobody_answers_is_told_soon(monkeypatch, capsys, cache, one_run, named):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    started, address = time.monotonic(), named.format(port=port)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if named == "auto":
        monkeypatch.setenv("RAY_ADDRESS", f"127.0.0.1:{port}")
    assert f"127.0.0.1:{port} (Connection refused)" in refused(capsys, "--engine", "ray", "--address", address)
    assert time.monotonic() - started < 20.0


@pytest.mark.process
def test_an_address_where_something_else_listens_is_told_soon(monkeypatch):
    monkeypatch.setattr(connection, "PATIENCE_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as server, pytest.raises(CourseError, match="as the head of a Ray"), \
            connection.connected(f"127.0.0.1:{server.getsockname()[1]}"):
        pass
