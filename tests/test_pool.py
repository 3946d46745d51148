"""Runs side by side: what is planned, in which order, what fits, and that what comes out does not depend on it."""

import os
import pathlib
import random
import signal
import subprocess
import threading
import time

import pandas as pd
import psutil
import pytest
import torch

from utils.course import bench_runs
from utils.course.chaos.ask import in_a_process
from utils.course.cli import main
from utils.course.own_cache import link_cache
from utils.course.runner import notebook_paths
from utils.course.training import Asked, planned_runs, specs_of_measurements, specs_of_notebooks, train_missing
from utils.errors import UsageError
from utils.paths import cache_dir, reference_dir
from utils.profiles import load_profile
from utils.reporting.registry import MEASUREMENTS
from utils.studies import load_studies
from utils.training import outcomes as outcomes_module
from utils.training import pool as module
from utils.training.outcomes import Account, Outcomes, summary
from utils.training.plan import Costs, Planned, makespan, plan, shard
from utils.training.pool import memory_note, train_side_by_side
from utils.training.spec import Method, run_specs
from utils.training.store import RunStore
from utils.training.wanted import SHOWN, every_spec, wanted_specs


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache of the test's own, for this process and those that it starts."""
    link_cache(tmp_path)
    monkeypatch.setenv("LORA_COURSE_CACHE", str(tmp_path))
    return tmp_path


def task(name: str, seconds: float, *, after: tuple[str, ...] = (), chain: float | None = None, gib: float = 1.0):
    """A planned run that is only a name."""
    class Named:
        key = name

    return Planned(Named(), seconds, gib, frozenset(after), seconds if chain is None else chain)


# The plan -------------------------------------------------------------------------------------------------------------


def test_a_plan_holds_what_is_missing_after_what_it_waits_for(tmp_path, spec):
    store = RunStore(tmp_path / "runs")
    first = spec()
    second = spec(start=first, seed=1)
    third = spec(start=second, seed=2)
    alone = spec(learning_rate=1e-3)
    planned = plan([third, alone, second], store, Costs())
    after = {one.spec.key: one.after for one in planned}
    assert after == {first.key: frozenset(), second.key: {first.key}, third.key: {second.key}, alone.key: frozenset()}
    assert planned[0].spec.key == first.key, "the longest chain begins first"
    one = {planned_one.spec.key: planned_one for planned_one in planned}
    assert one[first.key].chain_seconds == pytest.approx(3 * one[alone.key].seconds)
    store.get(alone)
    assert alone.key not in {left.spec.key for left in plan([third, alone], store, Costs())}


def test_costs_are_those_of_finished_runs_of_the_same_shape(spec):
    costs, one = Costs(), spec()
    guessed = costs.of(one)
    costs.learn(one.model_dump(mode="json"), {"train_seconds": 8.0, "steps": 4, "peak_gib": 2.5})
    assert costs.of(spec(steps=40, seed=3)) == (80.0, 2.5) and guessed != (8.0, 2.5)
    other = spec(method=Method(kind="lora", r=4, lora_alpha=8))
    assert costs.of(other) != (8.0, 2.5), "another kind of method says nothing"
    costs.learn(other.model_dump(mode="json"), {"train_seconds": 4.0, "steps": 4, "peak_gib": 1.5})
    assert costs.of(spec(method=Method(kind="lora", r=8, lora_alpha=8))) == (4.0, 1.5), "of the nearest kind"


def test_every_run_of_a_profile_is_planned_once_and_starts_come_first():
    smoke = load_profile("smoke").with_reference_runs()
    specs = every_spec(smoke, (0, 1))
    planned = plan(specs.values(), RunStore(cache_dir() / "nothing"), Costs())
    keys = [one.spec.key for one in planned]
    assert len(keys) == len(set(keys)) >= len(specs)
    assert all(one.after <= set(keys) for one in planned) and any(one.after for one in planned)


def test_what_measurements_name_exists_in_some_profile_and_adds_up_to_every_run():
    load_studies()
    profiles = [load_profile(name).with_reference_runs() for name in ("smoke", "laptop")]
    for one in MEASUREMENTS.values():
        for name in one.runs:
            assert any(wanted_specs(profile, [name]) for profile in profiles), f"{one.name} names '{name}'"
    smoke = profiles[0]
    asked = specs_of_measurements(smoke, MEASUREMENTS, None)
    assert asked == {key: spec for key, spec in every_spec(smoke).items() if key in asked}
    assert not every_spec(smoke).keys() - asked.keys(), "a run that no measurement asks for"
    ranks = wanted_specs(smoke, ["ranks"])
    assert ranks == {spec.key: spec for spec in run_specs(smoke, "ranks")} != wanted_specs(smoke, [SHOWN])
    assert wanted_specs(smoke, ["no such"]) == {}


def test_the_runs_of_a_notebook_are_those_of_its_measurements():
    smoke = load_profile("smoke")
    found = specs_of_notebooks(smoke, notebook_paths(["08"]), (0,))
    assert found == wanted_specs(smoke, ["continual"], (0,)) and found
    assert specs_of_notebooks(smoke, notebook_paths(["01", "17"]), None) == {}


@pytest.mark.parametrize("parts", [1, 3, 5])
def test_shards_hold_every_run_once_and_no_chain_is_torn(parts):
    planned = [task(f"{chain}-{step}", 1.0 + chain, after=(f"{chain}-{step - 1}",) if step else ())
               for chain in range(7) for step in range(3)]
    shards = [shard(planned, part, parts) for part in range(1, parts + 1)]
    assert sorted(one.spec.key for some in shards for one in some) == sorted(one.spec.key for one in planned)
    for some in shards:
        keys = {one.spec.key for one in some}
        assert all(one.after <= keys for one in some)
    with pytest.raises(UsageError, match="Expected a shard from 1/3 to 3/3, got 4/3"):
        shard(planned, 4, 3)


def test_an_empty_share_is_not_called_everything(cache, spec, capsys):
    train_missing(Asked({spec().key: spec()}, part=2, parts=2), always_say=True)
    assert capsys.readouterr().out == "Every run of share 2/2 is there; nothing is to be trained here.\n"


def test_shares_are_the_same_whenever_a_machine_begins(cache, spec):
    """Dealt from what is missing, a machine that began later dealt anew, and some runs fell to nobody."""
    wanted = {one.key: one for one in [spec(seed=seed) for seed in range(6)]}
    first = [{one.spec.key for one in planned_runs(Asked(wanted, part=part, parts=3))} for part in (1, 2, 3)]
    assert set().union(*first) == wanted.keys() and sum(map(len, first)) == 6
    done = next(iter(first[0]))
    RunStore().get(wanted[done])
    later = [{one.spec.key for one in planned_runs(Asked(wanted, part=part, parts=3))} for part in (1, 2, 3)]
    assert later == [first[0] - {done}, *first[1:]]


def recorded_durations() -> list[float]:
    """Seconds that runs of the laptop's reference took, from its committed tables."""
    curves, sweep = (pd.read_csv(reference_dir() / "laptop" / f"{name}.csv")
                     for name in ("accuracy_over_steps", "variant_sweep"))
    return [*curves.groupby("run")["train_seconds"].max(), *sweep.groupby("run")["train_seconds"].max()]


def test_a_week_on_paper_comes_near_the_bound_that_no_order_can_beat():
    """10,000 runs in chains of up to six over 64 GPUs; every tenth attempt is killed, some runs several times.

    They last two hundred times what the laptop's did.
    """
    drawn, recorded, planned = random.Random(0), recorded_durations(), []
    assert len(recorded) > 50 and max(recorded) > 5 * min(recorded)
    while len(planned) < 10_000:
        length, name = drawn.choice([1, 1, 1, 2, 6]), len(planned)
        seconds = [200 * drawn.choice(recorded) for _ in range(length)]
        planned += [task(f"{name}-{step}", seconds[step], after=(f"{name}-{step - 1}",) if step else (),
                         chain=sum(seconds[step:])) for step in range(length)]
    kills: list[int] = []

    def killed(one: Planned, attempt: int) -> float | None:
        if drawn.random() > 0.1:
            return None
        kills.append(attempt)
        return drawn.random()

    started = time.monotonic()
    spent, bound = makespan(planned, 64, killed=killed)
    assert bound <= spent <= 1.1 * bound and time.monotonic() - started < 5.0
    assert len(kills) > 900 and max(kills) >= 2
    alone = sum(one.seconds for one in planned)
    assert 1.01 * alone < 64 * bound < 1.1 * alone, "what was lost with its worker was done again"
    assert 5 * 86_400 < spent < 9 * 86_400, "about a week"
    assert makespan(planned, 1)[0] == pytest.approx(alone) and makespan([], 4) == (0.0, 0.0)


def test_a_run_that_is_killed_loses_what_came_after_its_last_resume_point():
    run = task("one", 100.0)
    at = [0.6, None]
    assert makespan([run], 1, killed=lambda one, attempt: at[attempt])[0] == pytest.approx(60 + 50)
    at = [0.2, 0.5, None]  # nothing was kept of the first attempt, half of the second
    assert makespan([run], 1, killed=lambda one, attempt: at[attempt])[0] == pytest.approx(20 + 50 + 50)


# The pool -------------------------------------------------------------------------------------------------------------


def kill_the_first_worker(killed: list[int]) -> None:
    """Wait for a process that a fork server of ours has started, and kill it."""
    while not killed:
        for server in psutil.Process().children():
            if "forkserver import main" in " ".join(server.cmdline()):
                killed += [worker.pid for worker in server.children()][:1]
        time.sleep(0.02)
    os.kill(killed[0], signal.SIGKILL)


@pytest.mark.process
def test_runs_side_by_side_are_those_that_one_process_makes_though_a_worker_is_killed(cache, spec):
    specs = [spec(seed=seed) for seed in (0, 1)] + [spec(seed=2, start=spec(seed=0))]
    alone = RunStore(cache / "alone")
    torch.set_num_threads(1)
    expected = {one.key: alone.get(one).trained() for one in specs}
    lines, killed = list[str](), list[int]()
    killer = threading.Thread(target=kill_the_first_worker, args=(killed,), daemon=True)
    killer.start()
    outcomes = train_side_by_side(plan(specs, RunStore()), workers=2, say=lines.append)
    killer.join(timeout=5)
    assert killed and not killer.is_alive()
    assert set(outcomes.done) == {one.key for one in specs} and not outcomes.failed
    for one in specs:
        found = RunStore().get(one).trained()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected[one.key].items())
    assert len(lines) == 3 and lines[-1].startswith("[3/3] movies, full, seed ") and "min left" in lines[-1]
    assert plan(specs, RunStore()) == [] and not list((cache / "logs").iterdir())


@pytest.mark.process
@pytest.mark.skipif(os.name != "posix", reason="a terminal's Ctrl-C reaches a group of processes there")
def test_a_terminals_interrupt_ends_in_one_sentence_whatever_is_being_done(cache):
    """The fork server told where it was in its imports, and each worker that it was interrupted."""
    link_cache(cache / "cache")
    process = in_a_process(cache, ["train", "--profile", "smoke", "--only", "08", "--workers", "2"],
                           stdout=subprocess.DEVNULL, start_new_session=True)
    driver = psutil.Process(process.pid)
    while not any("forkserver import main" in " ".join(one.cmdline()) for one in driver.children()):
        time.sleep(0.02)
    started = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)
    assert process.communicate(timeout=60)[1] == b"Interrupted; the same command goes on from here.\n"
    assert process.returncode == 130 and time.monotonic() - started < 4.0


@pytest.mark.process
def test_the_benchmark_trains_the_same_runs_both_ways(cache, spec, monkeypatch):
    """Threads are one here both ways, so nothing may differ; what other weights would show is tried too."""
    short = [spec(seed=seed) for seed in (0, 1)]
    monkeypatch.setattr(bench_runs, "sample", lambda steps, **_: short)
    monkeypatch.setattr(bench_runs, "default_workers", lambda: 2)
    row = bench_runs.side_by_side_row(4)
    assert row["update_difference"] == row["metric_difference"] == 0 and row["runs"] == row["workers"] == 2
    assert row["ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"], rel=0.1, abs=0.01)
    assert not (cache / "runs").exists() and not (cache / "logs").exists(), "in caches of its own"
    one, other = (RunStore().get(spec(seed=0, learning_rate=rate)) for rate in (1e-2, 2e-2))
    update, metric = bench_runs._apart(one, other)
    assert 0.1 < update < 10 and metric >= 0


def test_the_benchmarks_sample_has_every_kind_of_run_once():
    found = bench_runs.sample(1, profile="smoke")
    kinds = {(one.task, one.method.kind, one.objective) for one in found}
    every = every_spec(load_profile("smoke")).values()
    assert kinds == {(one.task, one.method.kind, one.objective) for one in every if not (one.start or one.reward)}
    assert len(kinds) == len(found) and all(one.steps == 1 and one.durations is None for one in found)
    assert max(one.steps for one in bench_runs.sample(10**6)) < 10**6, "no longer than the course's own"
    assert not {one.key for one in found} & {one.key for one in every}


@pytest.mark.process
def test_a_run_that_fails_stops_nothing_but_what_waits_for_it(cache, spec):
    broken = spec(base_revision="0" * 16)
    waits, fine = spec(start=broken, seed=4), spec(seed=5)
    outcomes = train_side_by_side(plan([waits, fine], RunStore(), Costs()), workers=2, say=lambda line: None)
    assert set(outcomes.done) == {fine.key} and set(outcomes.left_out) == {waits.key}
    assert "build the specification anew" in outcomes.failed[broken.key]
    outcomes.seconds = 60.0
    told = "\n".join(summary(outcomes))
    assert "1 runs trained in 1.0 min." in told and "not trained: 1 runs that wait for another" in told


def test_the_time_that_is_left_follows_what_runs_of_each_kind_took(monkeypatch, spec, cache):
    """Before anything was measured a plan was wrong by ten times, and told a reader of two minutes for half an hour."""
    kinds = {"full": Method(kind="full"), "LoRA": Method(kind="lora", r=2, lora_alpha=4)}
    planned = [Planned(spec(method=method, seed=seed), 600.0, 1.0) for method in kinds.values() for seed in range(3)]
    now, lines = [0.0], []
    monkeypatch.setattr(outcomes_module.time, "monotonic", lambda: now[0])
    account = Account(planned, say=lines.append)
    for seconds in (60.0, 6.0):  # three of each: full takes a tenth of what is expected, LoRA a hundredth
        for _ in range(3):
            one = account.take()
            now[0] += seconds
            account.ended(one, seconds, "why not")
    assert [line.split("about ")[1] for line in lines[:2]] == ["50 min left", "40 min left"], "of failed ones nothing"
    monkeypatch.setattr(RunStore, "result", lambda self, one: {"run": {"status": "done"}})
    account, lines[:] = Account(planned, say=lines.append), []
    for seconds in (60.0, 60.0, 60.0, 6.0, 6.0, 6.0):
        one = account.take()
        now[0] += seconds
        account.ended(one, seconds)
    assert [line.split("about ")[1] for line in lines] == ["5 min left", "4 min left", "3 min left", "0 min left",
                                                           "0 min left", "0 min left"]
    two, lines[:] = Account(planned, say=lines.append), []
    one, _ = two.take(), two.take()
    now[0] += 60.0
    two.ended(one, 60.0)
    assert lines[0].endswith("about 2 min left"), "of 240 s of work that is left two at a time"
    now[0] += 600.0  # the second takes eleven times as long as expected, and nothing off the four that wait
    two.ended(two.take(), 60.0)
    assert not lines[1].endswith("about 0 min left")


class _Process:
    """A process that ends when it is asked, without being one."""

    started: list["_Process"] = []

    def __init__(self, target, args):
        self.key, self.sentinel, self.exitcode, self.pid = args[0], object(), 1, 2**30
        _Process.started.append(self)

    def start(self):
        pass

    join = terminate = start


def test_memory_decides_how_many_run_at_a_time(monkeypatch, spec, cache):
    """Two of 3 GiB do not fit into 5; one that expects more than all memory is trained alone all the same."""
    at_once: list[int] = []
    monkeypatch.setattr(_Process, "started", [])
    monkeypatch.setattr(module, "wait", lambda sentinels, timeout: at_once.append(len(sentinels)) or sentinels[:1])
    planned = [Planned(spec(seed=seed), 1.0, gib) for seed, gib in enumerate([3.0, 3.0, 1.0, 9.0])]
    pool = module._Pool(Account(planned, say=lambda line: None), workers=4, budget=5.0)
    pool.context = type("Context", (), {"Process": _Process})
    pool.run()
    assert len(_Process.started) == 4 and max(at_once) == 2
    assert len(pool.account.outcomes.failed) == 4, "no such process trained anything"


class _Killed(_Process):
    """A process that something else ended, as often as it is started."""

    def __init__(self, target, args):
        super().__init__(target, args)
        self.exitcode = -9


def test_a_run_whose_process_is_killed_goes_on_a_few_times_and_is_then_named(monkeypatch, spec, cache):
    monkeypatch.setattr(_Process, "started", [])
    monkeypatch.setattr(module, "wait", lambda sentinels, timeout: sentinels[:1])
    waits = Planned(spec(seed=1), 1.0, 1.0, after=frozenset({spec().key}))
    pool = module._Pool(Account([Planned(spec(), 1.0, 1.0), waits], say=lambda line: None), workers=2, budget=5.0)
    pool.context = type("Context", (), {"Process": _Killed})
    pool.run()
    assert len(_Process.started) == module.ATTEMPTS
    assert f"killed {module.ATTEMPTS} times (exit -9)" in pool.account.outcomes.failed[spec().key]
    assert list(pool.account.outcomes.left_out) == [waits.spec.key]


def test_logs_of_finished_runs_that_a_killed_driver_left_go(cache, spec):
    (cache / "runs" / "done").mkdir(parents=True)
    (cache / "runs" / "done" / "SEAL.json").touch()
    for name in ("done", "under-way"):
        module.ensure_dir(cache / "logs").joinpath(f"{name}.log").touch()
    assert train_side_by_side([], workers=1) == Outcomes(workers=1, seconds=pytest.approx(0.0, abs=1.0))
    assert [path.name for path in (cache / "logs").iterdir()] == ["under-way.log"]


def test_on_gpus_a_free_card_is_what_a_run_waits_for(monkeypatch, spec, cache):
    """What a run is expected to take there is its card's memory, which says nothing of this machine's."""
    at_once: list[int] = []
    monkeypatch.setattr(_Process, "started", [])
    monkeypatch.setattr(module, "_gpus", lambda: ["0", "3"])
    monkeypatch.setattr(module, "wait", lambda sentinels, timeout: at_once.append(len(sentinels)) or sentinels[:1])
    seen: list[str] = []
    monkeypatch.setattr(_Process, "__init__", lambda self, target, args, init=_Process.__init__: (
        init(self, target, args), seen.append(args[2]["CUDA_VISIBLE_DEVICES"]))[0])
    monkeypatch.setattr(module, "hardware", lambda: {"accelerator": {"name": "a card", "memory_gib": 80.0}})
    planned = [Planned(spec(seed=seed), 1.0, 70.0) for seed in range(4)]
    assert module.default_workers() == 2 and memory_note(planned, 2) is None
    assert module.usable_workers(planned, 9) == 2 and module.usable_workers(planned[:1], None) == 1
    said = memory_note([*planned, Planned(spec(seed=9), 1.0, 112.0)], 2)
    assert said == (f"1 runs expect more than the 80 GiB of a card (movies, full, seed 9 112 GiB, for one); "
                    f"`train-sharded --run {spec(seed=9).key}` trains such a run on several.")
    pool = module._Pool(Account(planned, say=lambda line: None), workers=2, budget=5.0)
    pool.context = type("Context", (), {"Process": _Process})
    pool.run()
    assert max(at_once) == 2 and len(_Process.started) == 4 and seen == ["0", "3", "0", "3"]


def test_fewer_at_a_time_than_asked_for_is_said(monkeypatch, spec):
    monkeypatch.setattr(module, "free_memory_gib", lambda: 5.0)
    said = memory_note([Planned(spec(), 1.0, 2.0)], 4)
    assert said is not None and "Memory bears 2 of the largest runs at a time (2.0 GiB each)" in said
    assert memory_note([Planned(spec(), 1.0, 1.0)], 4) is None and memory_note([], 4) is None


@pytest.mark.parametrize("words, sentence", [
    (["--shard", "0/3"], "is no shard I/N"), (["--shard", "4/3"], "is no shard I/N"), (["--shard", "x"], "is no shard"),
    (["--workers", "0"], "is not a whole number of 1 or more"), (["--seeds", "a"], "is not a list")])
def test_bad_words_are_one_sentence(capsys, words, sentence):
    assert main(["train", "--profile", "smoke", *words]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and sentence in said and said.count("\n") == 1


def test_the_command_says_what_it_would_train_and_ends_in_1_where_a_run_failed(monkeypatch, capsys, spec, cache):
    monkeypatch.setattr("utils.training.wanted.every_spec", lambda profile, seeds: {one.key: one for one in [spec()]})
    assert main(["train", "--profile", "smoke", "--dry-run"]) == 0
    assert "1 runs to train" in (printed := capsys.readouterr().out) and spec().key in printed
    assert not pathlib.Path(cache / "runs" / spec().key).exists()
    assert main(["train", "--profile", "smoke", "--dry-run", "--engine", "ray", "--address", "node:6379"]) == 0
    assert "1 runs to train on the cluster at node:6379" in capsys.readouterr().out, "not with this machine's cores"
    monkeypatch.setattr("utils.course.training.train_side_by_side",
                        lambda planned, workers: Outcomes(failed={"a": "a run: why"}))
    assert main(["train", "--profile", "smoke"]) == 1
    assert "failed: a run: why" in capsys.readouterr().out
    monkeypatch.setattr(RunStore, "stored", lambda self, one: True)
    assert main(["train", "--profile", "smoke"]) == 0 and "Every run is there" in capsys.readouterr().out
