"""``python -m utils``: doctor, fetch, course, intruders, bench, build-base, reference, claims, where, runs.

Exit status 0 done, 1 failed, 2 misuse, 130 interrupted. One sentence on stderr says what was wrong and what to do.
"""

import argparse
import math
import os
import re
import shutil
import sys
import traceback
from pathlib import Path

from utils.errors import CourseError, UsageError


class _Parser(argparse.ArgumentParser):
    """argparse that says one sentence and leaves with 2."""

    def error(self, message: str):
        raise UsageError(f"{message}; see `{self.prog} --help`.")


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        options = _parser().parse_args(arguments)
        return options.run(options) or 0
    except KeyboardInterrupt:
        print("\nInterrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        if "--traceback" in arguments:
            traceback.print_exc()
        if isinstance(error, CourseError):
            print(f"error: {error}", file=sys.stderr)
            return error.exit_status
        reason = " ".join(str(error).split())
        print(f"error: unexpected {type(error).__name__}: {reason}. Run again with --traceback for the rest.",
              file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    called = Path(sys.argv[0]).stem  # the console script is this command line under a name of its own
    parser = _Parser(prog=called if called == "lora-course" else "python -m utils", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)

    def command(name: str, run, text: str, *, profile: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
        if profile:
            added.add_argument("--profile", default="laptop", help="smoke, laptop, gpu, paper or a .yaml file")
        added.set_defaults(run=run)
        return added

    command("doctor", _doctor, "versions, hardware, and what each profile would need here", profile=False)
    fetch = command("fetch", _fetch, "bring everything a profile needs to this machine")
    fetch.add_argument("--source", nargs="+", default=[], help="packaged sources by name, instead of a profile's")
    course = command("course", _course, "run the notebooks in order")
    course.add_argument("--only", type=_numbers, help="notebook numbers, such as 03,04")
    course.add_argument("--seeds", type=_seeds, help="seeds, such as 0,1,2; the profile's own by default")
    course.add_argument("--timeout", type=_positive, help="seconds that one cell may take")
    course.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", type=_parameter,
                        help="a further parameter, refused unless every notebook that is run declares it")
    course.add_argument("--run-code", action="store_true", help="run generated code, in the sandbox (notebook 11)")
    course.add_argument("--publish", action="store_true", help="write outputs, costs and README tables to be committed")
    _intruder_options(command("intruders", _intruders, "count intruder dimensions between any two checkpoints",
                              profile=False))
    benchmark = command("bench", _bench, "measure the fast paths against the plain ways, as ratios", profile=False)
    benchmark.add_argument("--rounds", type=_positive, default=3, help="repetitions of each comparison (3)")
    benchmark.add_argument("--quick", action="store_true", help="a small model and few steps: does it run at all?")
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    benchmark.add_argument("--publish", action="store_true", help="write the record and README table to be committed")
    base = command("build-base", _build_base, "make a base model that the project trained itself", profile=False)
    base.add_argument("which", choices=["encoder", "decoder"])
    base.add_argument("--steps", type=_positive, default=None, help="optimiser steps; the recipe's own by default")
    reference = command("reference", _reference, "make the reference results anew")
    reference.add_argument("--seeds", type=_seeds, help="the profile's reference seeds by default")
    reference.add_argument("--run-code", action="store_true", help="run generated code, in the sandbox")
    reference.add_argument("--only", type=_names, metavar="NAMES", help="these measurements, such as sensitivity; the "
                                                                        "others stay as they are")
    claims = command("claims", _claims, "the ledger of claims, judged on the reference results")
    claims.add_argument("--publish", action="store_true", help="write LEDGER.md to be committed")
    where = command("where", _where, "the code behind a figure or a claim, by its id", profile=False)
    where.add_argument("id", metavar="ID", help="such as 04_count_against_epsilon or accuracy-parity")
    runs = command("runs", _runs, "what the run store holds", profile=False)
    runs.add_argument("--prune", action="store_true", help="delete runs that no profile of this version asks for")
    return parser


def _intruder_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("base", metavar="BASE", help="folder or Hub name of the pretrained model; - for the one that "
                                                     "the adapter names")
    parser.add_argument("tuned", metavar="TUNED", help="folder or Hub name of the tuned model, or of a LoRA adapter")
    parser.add_argument("--k", type=_positive, default=10, help="leading vectors per matrix (10)")
    parser.add_argument("--epsilon", type=_epsilon, nargs="+", default=[round(0.1 * part, 1) for part in range(1, 10)],
                        help="thresholds on the largest cosine (0.1 … 0.9)")
    parser.add_argument("--layers", type=_pattern, metavar="REGEX", help="only matrices whose name has a match")
    parser.add_argument("--vectors", choices=["left", "right"], default="left", help="output side (left) or input side")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--figure", type=_figure_file, metavar="FILE", help="draw the counts: .png, .svg or .pdf")
    parser.add_argument("--allow-pickle", action="store_true",
                        help="read .bin files too, by torch's restricted loader (weights_only=True)")


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number above 0 and up to 1")
    return value


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(f"'{text}' is not a regular expression ({error})") from error


def _figure_file(text: str) -> Path:
    if Path(text).suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"'{text}' does not end in .png, .svg or .pdf")
    return Path(text)


def _numbers(text: str) -> list[str]:
    numbers = [part.strip().zfill(2) for part in text.split(",") if part.strip()]
    if not numbers:
        raise argparse.ArgumentTypeError(f"'{text}' names no notebook; give numbers such as 03,04")
    return numbers


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) < 2**32 for part in parts) or len({*map(int, parts)}) < len(parts):
        raise argparse.ArgumentTypeError(f"'{text}' is not a list of different whole numbers such as 0,1,2")
    return [int(part) for part in parts]


def _names(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"'{text}' is not a whole number of 1 or more")
    return int(text)


def _parameter(text: str) -> tuple[str, object]:
    import yaml

    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise argparse.ArgumentTypeError(f"'{text}' is not NAME=VALUE")
    if name in ("PROFILE", "SEEDS"):
        raise argparse.ArgumentTypeError(f"{name} is given as --{name.lower()}, so that all of the course knows it")
    return name, yaml.safe_load(value)


def _profile(options):
    from utils.profiles import load_profile

    return load_profile(options.profile)


def _doctor(options) -> int:
    from utils.course.doctor import doctor

    return 0 if doctor() else 1


def _fetch(options) -> None:
    from utils.course.fetch import fetch_profile, fetch_sources
    from utils.machine import set_up_process

    set_up_process()
    if options.source:
        fetch_sources(options.source)
    else:
        fetch_profile(_profile(options))


def _course(options) -> None:
    profile = _profile(options)  # before the slow imports, so that a typing error is told at once
    from utils.course.publish import publish_course
    from utils.course.runner import run_course
    from utils.reporting.publish import PUBLISH_VARIABLE

    # Kernels inherit it: only a course that is published writes the committed figures.
    os.environ[PUBLISH_VARIABLE] = "1" if options.publish else "0"
    outcomes = run_course(profile, profile_name=options.profile, only=options.only, seeds=options.seeds,
                          timeout=options.timeout, parameters=dict(options.parameter),
                          where_declared={"RUN_CODE": True} if options.run_code else {})
    if options.publish:
        publish_course(profile, outcomes)
    _summary(profile, outcomes)


def _summary(profile, outcomes) -> None:
    from utils.ledger.claims import verdicts
    from utils.paths import cache_dir
    from utils.reporting.publish import figure_folder

    print(f"\n{'notebook':34} {'seconds':>8} {'peak GiB':>9}  verdicts of its claims (reference results)")
    ledger = verdicts(profile)
    for outcome in outcomes:
        found = ledger[ledger["notebook"] == outcome.notebook[:2]]["verdict"].value_counts()
        text = ", ".join(f"{count} {word}" for word, count in found.items()) or "none"
        print(f"{outcome.notebook:34} {outcome.seconds:8.0f} {outcome.peak_gib:9.2f}  {text}")
    print(f"\nRead them: .venv/bin/jupyter lab {cache_dir() / 'course' / profile.profile}")
    print(f"Figures:   {figure_folder(profile)}")


def _intruders(options) -> None:
    from utils.course.intruders import analyse, draw, summary
    from utils.files import write_json
    from utils.machine import set_up_process
    from utils.paths import ensure_dir

    set_up_process()
    for file in filter(None, (options.json, options.figure)):  # before the work, not after it
        if file.is_dir():
            raise UsageError(f"{file} is a folder; give the file to write.")
        ensure_dir(file.parent)
    report = analyse(options.base, options.tuned, k=options.k, epsilons=sorted(set(options.epsilon)),
                     layers=options.layers, vectors=options.vectors, device=options.device,
                     allow_pickle=options.allow_pickle)
    print(summary(report))
    if options.json:
        write_json(options.json, report)
    if options.figure:
        draw(report, options.figure)


def _bench(options) -> None:
    if options.quick and options.publish:
        raise UsageError("A quick benchmark is not published; leave one of --quick and --publish out.")
    from utils.course.bench import bench, bench_table
    from utils.course.publish import BENCH_RECORD, update_readme
    from utils.files import write_json
    from utils.machine import set_up_process
    from utils.paths import ensure_dir

    set_up_process()
    if options.json:
        ensure_dir(options.json.parent)
    small = {"layers": 1, "width": 192, "training_steps": 2, "passages": 1} if options.quick else {}
    result = bench(rounds=options.rounds, **small)
    print(bench_table(result))
    for file in ([options.json] if options.json else []) + ([BENCH_RECORD] if options.publish else []):
        write_json(file, result)
    if options.publish:
        update_readme()


def _build_base(options) -> None:
    from utils.machine import set_up_process
    from utils.training.masked_lm import build_encoder_base
    from utils.training.small_decoder import build_decoder_base

    set_up_process()
    build = {"encoder": build_encoder_base, "decoder": build_decoder_base}[options.which]
    print(f"written: {build(**({'steps': options.steps} if options.steps else {}))}")


def _reference(options) -> None:
    from utils.course.doctor import require
    from utils.ledger.page import write_ledger
    from utils.ledger.reference import build_reference
    from utils.machine import set_up_process

    profile = _profile(options)
    require(profile)
    set_up_process()
    build_reference(profile.with_generated_code(options.run_code), tuple(options.seeds) if options.seeds else None,
                    only=options.only)
    write_ledger(profile)


def _claims(options) -> None:
    from utils.ledger.page import as_text, chance_note, ledger, summary, write_ledger

    profile = _profile(options)
    table = ledger(profile)
    print(as_text(table), end="\n\n")
    print(summary(table).to_string(index=False), chance_note(table), sep="\n\n")
    if options.publish:
        write_ledger(profile)


def _where(options) -> None:
    from utils.ledger.where import where

    print(where(options.id))


def _runs(options) -> None:
    from utils.course.inventory import list_runs, unwanted_keys
    from utils.training.store import RunStore

    store = RunStore()
    table = list_runs(store)
    print(table.to_string(index=False) if len(table) else f"The store at {store.folder} is empty.")
    if options.prune:
        for key in unwanted_keys(table):
            shutil.rmtree(store.folder / key)
            (store.folder / f"{key}.lock").unlink(missing_ok=True)
            print(f"deleted {key}")
        shutil.rmtree(store.folder / "damaged", ignore_errors=True)
