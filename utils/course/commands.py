"""What each command does; imports are made when it runs, so that a typing error is told at once."""

import os
from pathlib import Path

from utils.errors import UsageError


def _profile(options):
    from utils.profiles import load_profile

    return load_profile(options.profile)


def doctor(options) -> int:
    """Say what this machine has; 1 if the default profile does not fit."""
    from utils.course import doctor

    return 0 if doctor.doctor() else 1


def fetch(options) -> None:
    """Bring sources by name, or all that a profile needs."""
    profile = None if options.source else _profile(options)
    from utils.course.fetch import fetch_profile, fetch_sources
    from utils.machine import set_up_process

    set_up_process()
    _tidy()
    if profile is None:
        fetch_sources(options.source)
    else:
        fetch_profile(profile)


def _tidy() -> None:
    """What writes that were interrupted long ago left behind goes before new work begins."""
    from utils.files import restore_folder, sweep
    from utils.paths import MODELS, NOTEBOOKS, ROOT, cache_dir, figures_dir, reference_dir
    from utils.sources.models import PACKAGED

    for folder in (cache_dir(), figures_dir(), reference_dir()):
        sweep(folder)
    for folder in (ROOT, NOTEBOOKS):
        sweep(folder, recursive=False)
    for name in PACKAGED:
        restore_folder(MODELS / name)


def course(options) -> None:
    """Run the notebooks, and publish what they gave if that is asked for."""
    profile = _profile(options)
    from utils.course.publish import publish_course
    from utils.course.runner import Pass, run_course
    from utils.machine import set_up_process
    from utils.profiles.loader import profile_source
    from utils.reporting.publish import PUBLISH_VARIABLE

    # Kernels inherit it: only a course that is published writes the committed figures.
    os.environ[PUBLISH_VARIABLE] = "1" if options.publish else "0"
    set_up_process()
    _tidy()
    # What is published holds measured times, so its notebooks run one at a time whatever is asked for.
    how = Pass(seeds=tuple(options.seeds) if options.seeds else None, given=dict(options.parameter),
               where_declared={"RUN_CODE": True} if options.run_code else {}, timeout=options.timeout,
               workers=options.workers, side_by_side=1 if options.publish else options.workers or 1)
    done = run_course(profile, profile_name=profile_source(options.profile), only=options.only, how=how)
    if options.publish:
        publish_course(profile, done, whole=options.only is None)
    _summary(profile, done.notebooks)


def _summary(profile, outcomes) -> None:
    from utils.ledger.claims import verdicts
    from utils.paths import cache_dir, notebook_number
    from utils.reporting.publish import figure_folder

    print(f"\n{'notebook':34} {'seconds':>8} {'peak GiB':>9}  verdicts of its claims (reference results)")
    ledger = verdicts(profile)
    for outcome in outcomes:
        found = ledger[ledger["notebook"] == notebook_number(outcome.notebook)]["verdict"].value_counts()
        text = ", ".join(f"{count} {word}" for word, count in found.items()) or "none"
        print(f"{outcome.notebook:34} {outcome.seconds:8.0f} {outcome.peak_gib:9.2f}  {text}")
    print(f"\nRead them: .venv/bin/jupyter lab {cache_dir() / 'course' / profile.profile}")
    print(f"Figures:   {figure_folder(profile)}")


def train(options) -> int:
    """Train what a profile lacks, side by side; 1 if a run failed."""
    if options.address and options.engine != "ray":
        raise UsageError("--address names a Ray cluster; add --engine ray, or leave it out.")
    profile = _profile(options)
    from utils.course.doctor import require
    from utils.course.runner import notebook_paths
    from utils.course.training import Asked, announcement, listed, planned_runs, specs_of_notebooks, train_missing
    from utils.machine import set_up_process
    from utils.profiles.used import remember
    from utils.training.wanted import every_spec

    paths = notebook_paths(options.only) if options.only else None
    if options.address is None and not options.dry_run:  # else it is not this machine that trains
        require(profile)
    set_up_process()
    _tidy()
    seeds = tuple(options.seeds) if options.seeds else None
    if options.reference:
        profile, seeds = profile.with_reference_runs(), seeds or profile.reference_seeds
    remember(profile, seeds or profile.seeds)
    specs = specs_of_notebooks(profile, paths, seeds) if paths else every_spec(profile, seeds)
    asked = Asked(specs, options.workers, *options.shard, engine=options.engine, address=options.address)
    if options.dry_run and (planned := planned_runs(asked)):
        print(announcement(planned, asked), listed(planned), sep="\n")
        return 0
    return 1 if train_missing(asked, always_say=True).failed else 0


def intruders(options) -> None:
    """Count between two checkpoints; say, write and draw it."""
    from utils.course.intruders import analyse, draw, summary
    from utils.files import check_output, write_json
    from utils.machine import set_up_process

    outputs = [file for file in (options.json, options.figure) if file is not None]
    for file in outputs:  # before the work, not after it
        check_output(file)
        for source in (options.base, options.tuned):
            if file.exists() and Path(source).is_dir() and file.resolve().parent == Path(source).resolve():
                raise UsageError(f"{file} is a file of {source}, which is only read; give another file.")
    if len({file.absolute() for file in outputs}) < len(outputs):
        raise UsageError(f"--json and --figure both name {outputs[0]}; give each a file of its own.")
    set_up_process(libraries=False)
    report = analyse(options.base, options.tuned, k=options.k, epsilons=sorted(set(options.epsilon)),
                     layers=options.layers, vectors=options.vectors, device=options.device,
                     allow_pickle=options.allow_pickle, adapter=options.adapter)
    print(summary(report))
    if options.json:
        write_json(options.json, report)
    if options.figure:
        draw(report, options.figure)


def bench(options) -> None:
    """Measure the fast paths; say and write it."""
    if options.quick and options.publish:
        raise UsageError("A quick benchmark is not published; leave one of --quick and --publish out.")
    from utils.course.bench import COMPARISONS, bench, bench_table, with_earlier
    from utils.course.publish import BENCH_RECORD, committed_bench, update_readme
    from utils.files import check_output, write_json
    from utils.machine import set_up_process

    files = ([options.json] if options.json is not None else []) + ([BENCH_RECORD] if options.publish else [])
    for file in files:
        check_output(file)
    set_up_process()
    small = {"layers": 1, "width": 192, "training_steps": 2, "passages": 1, "pool_steps": 1} if options.quick else {}
    usual = [name for name in COMPARISONS if not (options.quick and name == "side_by_side")]
    result = bench(options.only or usual, rounds=options.rounds, **small)
    print(bench_table(result))
    for file in files:
        write_json(file, with_earlier(result, committed_bench() or result) if file == BENCH_RECORD else result)
    if options.publish:
        update_readme()


def build_base(options) -> None:
    """Train one of the project's own bases and put it in place."""
    from utils.course.turns import only_one
    from utils.machine import set_up_process
    from utils.paths import cache_dir
    from utils.training.masked_lm import build_encoder_base
    from utils.training.small_decoder import build_decoder_base

    set_up_process()
    _tidy()
    build = {"encoder": build_encoder_base, "decoder": build_decoder_base}[options.which]
    with only_one(cache_dir() / "build" / options.which, f"The building of the {options.which} base"):
        print(f"written: {build(**({'steps': options.steps} if options.steps else {}))}")


def reference(options) -> None:
    """Measure with the reference seeds; write tables and ledger."""
    profile = _profile(options)
    from utils.course.doctor import require
    from utils.course.training import Asked, specs_of_reference, train_missing
    from utils.course.turns import only_one
    from utils.ledger.page import write_ledger
    from utils.ledger.reference import build_reference, check_reference
    from utils.machine import set_up_process
    from utils.paths import cache_dir
    from utils.profiles.used import remember

    check_reference(profile, options.only, trained_only=options.trained_only)
    require(profile)
    set_up_process()
    _tidy()
    seeds = tuple(options.seeds) if options.seeds else profile.reference_seeds
    with only_one(cache_dir() / "reference" / profile.profile, f"The reference of profile {profile.profile}"):
        whole = profile.with_reference_runs()
        remember(profile, seeds)
        if not options.trained_only:
            train_missing(Asked(specs_of_reference(whole, options.only, seeds), options.workers))
        build_reference(profile.with_generated_code(options.run_code), seeds, only=options.only,
                        trained_only=options.trained_only)
        write_ledger(profile)


def claims(options) -> None:
    """Print the ledger, and write it if that is asked for."""
    profile = _profile(options)
    from utils.ledger.page import as_text, chance_note, ledger, summary, write_ledger

    table = ledger(profile)
    print(as_text(table), end="\n\n")
    print(summary(table).to_string(index=False), chance_note(table), sep="\n\n")
    if options.publish:
        write_ledger(profile)


def where(options) -> None:
    """Print the files and lines behind an id."""
    from utils.ledger.where import where

    print(where(options.id))


def runs(options) -> None:
    """Print what the store holds; delete what is asked for, or what nothing asks for."""
    if options.all and options.prune != []:
        raise UsageError("--all goes with --prune without names of runs: it deletes runs of which no profile is known.")
    from utils.course.inventory import damaged_runs, list_runs, prune
    from utils.training.store import RunStore

    store = RunStore()
    table, aside = list_runs(store), damaged_runs(store)
    print(table.to_string(index=False) if len(table) else f"The store at {store.folder} is empty.")
    for folder, mib in aside:
        print(f"set aside as damaged: {folder.name}, {mib:g} MiB; --prune deletes it")
    if options.prune is not None:
        prune(store, table, named=options.prune, unknown_too=options.all)


def chaos(options) -> int:
    """Try faults on purpose; 1 if one of them did not hold."""
    if options.quick and options.publish:
        raise UsageError("A quick campaign is not published; leave one of --quick and --publish out.")
    from utils.course.chaos.campaign import campaign, tallied, write_report
    from utils.machine import set_up_process

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not live on in forked processes
    set_up_process()
    tried = campaign(quick=options.quick, only=options.only or ())
    print(tallied(tried).to_string(index=False))
    if options.publish:
        print(f"written: {write_report(tried)}")
    return 1 if any(one.problem for one in tried) else 0
