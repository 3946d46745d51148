"""What the command line takes: every value is read, or refused in words that say what would be taken."""

import argparse
import math
import re
from collections.abc import Callable
from pathlib import Path

from utils.errors import UsageError

PROFILE_HELP = "smoke, laptop, workstation, gpu, paper or a .yaml file"


class Parser(argparse.ArgumentParser):
    """argparse that says one sentence and leaves with 2."""

    def error(self, message: str):
        """UsageError instead of usage and exit."""
        raise UsageError(f"{message}; see `{self.prog} --help`.")


def build_parser(prog: str, description: str, runs: dict[str, Callable]) -> Parser:
    """The parser of the whole command line; each command's function is `runs` of its name, set as ``run``."""
    parser = Parser(prog=prog, description=description)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)

    def command(name: str, text: str, *, profile: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        added.add_argument("--traceback", action="store_true", help="show the whole traceback of an error")
        if profile:
            added.add_argument("--profile", default="laptop", help=PROFILE_HELP)
        added.set_defaults(run=runs[name])
        return added

    command("doctor", "versions, hardware, and what each profile would need here", profile=False)
    fetch = command("fetch", "bring everything a profile needs to this machine")
    fetch.add_argument("--source", nargs="+", default=[], help="packaged sources by name, instead of a profile's")
    _course_options(command("course", "run the notebooks in order"))
    _train_options(command("train", "train the runs that a profile lacks, side by side"))
    _sharded_options(command("train-sharded", "train runs that are bigger than a card, each over several GPUs"))
    _intruder_options(command("intruders", "count intruder dimensions between any two checkpoints", profile=False))
    benchmark = command("bench", "measure the fast paths against the plain ways, as ratios", profile=False)
    benchmark.add_argument("--only", nargs="+", choices=["counts", "training", "pseudo_loss", "side_by_side"],
                           help="these comparisons; those of the committed record stay beside them")
    benchmark.add_argument("--rounds", type=_positive, default=3, help="repetitions of each comparison (3)")
    benchmark.add_argument("--quick", action="store_true", help="a small model and few steps: does it run at all?")
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    benchmark.add_argument("--publish", action="store_true", help="write the record and README table to be committed")
    base = command("build-base", "make a base model that the project trained itself", profile=False)
    base.add_argument("which", choices=["encoder", "decoder"])
    base.add_argument("--steps", type=_positive, default=None, help="optimiser steps; the recipe's own by default")
    reference = command("reference", "make the reference results anew")
    reference.add_argument("--seeds", type=_seeds, help="the profile's reference seeds by default")
    reference.add_argument("--run-code", action="store_true", help="run generated code, in the sandbox")
    reference.add_argument("--only", type=_names, metavar="NAMES", help="these measurements, such as sensitivity; the "
                                                                        "others stay as they are")
    reference.add_argument("--trained-only", action="store_true", help="train nothing: take the runs that are there, "
                                                                       "into tables that are measured run by run")
    _worker_option(reference)
    claims = command("claims", "the ledger of claims, judged on the reference results")
    claims.add_argument("--publish", action="store_true", help="write LEDGER.md to be committed")
    where = command("where", "the code behind a figure or a claim, by its id", profile=False)
    where.add_argument("id", metavar="ID", help="such as 04_count_against_epsilon or accuracy-parity")
    runs_ = command("runs", "what the run store holds", profile=False)
    runs_.add_argument("--prune", nargs="*", metavar="RUN", help="delete runs that no profile which is here or was run "
                                                                 "here asks for any more; or the runs that are named")
    runs_.add_argument("--all", action="store_true", help="with --prune: also runs of which no profile is known")
    chaos = command("chaos", "faults on purpose: kills, damage, crowds, bad input, hostile programs", profile=False)
    chaos.add_argument("--quick", action="store_true", help="a few cases of every part, as the tests try them")
    chaos.add_argument("--only", type=_campaign_parts, metavar="PARTS", help="such as kills,crowds")
    chaos.add_argument("--publish", action="store_true", help="write CAMPAIGN.md and its record to be committed")
    return parser


def _course_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", type=_numbers, help="notebook numbers, such as 03,04,04b")
    parser.add_argument("--seeds", type=_seeds, help="seeds, such as 0,1,2; the profile's own by default")
    parser.add_argument("--timeout", type=_positive, help="seconds that one cell may take")
    parser.add_argument("-p", "--parameter", action="append", default=[], metavar="NAME=VALUE", type=_parameter,
                        help="a further parameter, refused unless every notebook that is run declares it")
    parser.add_argument("--workers", type=_positive, help="runs trained at a time (one per core, or per GPU, by "
                                                          "default) and notebooks at a time (one by default)")
    parser.add_argument("--run-code", action="store_true", help="run generated code, in the sandbox (notebook 11)")
    parser.add_argument("--publish", action="store_true", help="write outputs, costs and README tables to be committed")


def _worker_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workers", type=_positive, help="runs at a time; one per core, or per GPU, by default")


def _train_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", type=_numbers, help="the runs of these notebooks, such as 04,09; all by default")
    parser.add_argument("--seeds", type=_seeds, help="seeds, such as 0,1,2; the profile's own by default")
    parser.add_argument("--reference", action="store_true", help="the runs of the reference results, with its seeds")
    _worker_option(parser)
    parser.add_argument("--shard", type=_shard, default=(1, 1), metavar="I/N", help="the share of machine I of N")
    parser.add_argument("--dry-run", action="store_true", help="say what would be trained, and how long it would take")
    parser.add_argument("--engine", choices=["local", "ray"], default="local",
                        help="this machine's own processes, or Ray: utils/training/cluster/README.md")
    parser.add_argument("--address", type=_address, help="of a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; a Ray "
                                                         "of its own on this machine by default")


def _sharded_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", dest="run_keys", nargs="+", required=True, metavar="KEY",
                        help="runs by key, as `train --dry-run` lists them")
    parser.add_argument("--processes", type=_positive, help="processes of a run; one per GPU, or core, by default")
    parser.add_argument("--seeds", type=_seeds, help="seeds, such as 0,1,2; the profile's own by default")
    parser.add_argument("--reference", action="store_true", help="runs of the reference results, with its seeds")


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
    parser.add_argument("--adapter", metavar="NAME", help="which of several adapters that lie in one folder")
    parser.add_argument("--allow-pickle", action="store_true",
                        help="read .bin files too, by torch's restricted loader (weights_only=True)")


def _refused(text: str, why: str) -> argparse.ArgumentTypeError:
    shown = text if len(text) <= 100 else f"{text[:100]}…"
    return argparse.ArgumentTypeError(f"'{shown}' {why}")


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:
        raise _refused(text, "is not a number above 0 and up to 1")
    return value


def _pattern(text: str) -> re.Pattern:
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise _refused(text, f"is not a regular expression ({error})") from error


def _figure_file(text: str) -> Path:
    if Path(text).suffix not in (".png", ".svg", ".pdf"):
        raise _refused(text, "does not end in .png, .svg or .pdf")
    return Path(text)


def _numbers(text: str) -> list[str]:
    """Numbers of notebooks; one of a single digit gets its zero, also before a letter: 4 is 04, 4b is 04b."""
    parts = _parts(text, "names no notebook; give numbers such as 03,04,04b")
    return [re.sub(r"^[0-9](?![0-9])", r"0\g<0>", part) for part in parts]


def _names(text: str) -> list[str]:
    return _parts(text, "names no measurement; give names such as sensitivity, or leave --only out for all of them")


def _campaign_parts(text: str) -> list[str]:
    return _parts(text, "names no part of the campaign; give parts such as kills,crowds, or leave --only out")


def _parts(text: str, otherwise: str) -> list[str]:
    """What stands between commas, each once; something has to stand there."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if not parts:
        raise _refused(text, otherwise)
    return list(dict.fromkeys(parts))


def _seeds(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    whole = all(part.isascii() and part.isdecimal() and len(part) <= 10 and int(part) < 2**32 for part in parts)
    if not whole or len({*map(int, parts)}) < len(parts):
        raise _refused(text, "is not a list of different whole numbers such as 0,1,2")
    return [int(part) for part in parts]


def _shard(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    if not 1 <= part <= parts:
        raise _refused(text, "is no shard I/N with I from 1 to N, such as 2/8")
    return part, parts


def _address(text: str) -> str:
    found = re.fullmatch(r"auto|(?:ray://)?(?:[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", text)
    if not found or (found[1] and not 0 < int(found[1]) < 2**16):
        raise _refused(text, "is no address of a Ray cluster; give auto, HOST:PORT or ray://HOST:PORT")
    return text


def _positive(text: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= 9 and int(text)):
        raise _refused(text, "is not a whole number of 1 or more (and less than a thousand million)")
    return int(text)


def _parameter(text: str) -> tuple[str, object]:
    from utils.profiles.plain import plain_yaml

    name, sign, value = text.partition("=")
    if not sign or not name.isidentifier():
        raise _refused(text, "is not NAME=VALUE")
    if name in ("PROFILE", "SEEDS"):
        raise argparse.ArgumentTypeError(f"{name} is given as --{name.lower()}, so that all of the course knows it")
    try:
        return name, plain_yaml(value)
    except ValueError as error:
        raise _refused(value, f"is no value for {name}: {error}") from error
