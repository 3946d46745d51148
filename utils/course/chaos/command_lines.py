"""Bad words on the command line: every command, every option."""

import os
import socket
from pathlib import Path

from utils.course.chaos.ask import refusal
from utils.course.chaos.case import Case
from utils.machine import device_name

LONG = "x" * 5000
# Each line is a command line that nothing can be made of; words stand between bars.
LINES = """

coarse
course|extra
chaos|--only|
chaos|--only|nothing
chaos|--quick|--publish
train|--shard|0/2
train|--workers|0
train|--only|99
train|--address|auto
train|--engine|slurm
train-sharded
train-sharded|--run|0123456789abcdef|--profile|smoke
train-sharded|--run|0123456789abcdef|--processes|0
doctor|--colour
doctor|--profile
fetch|--source
fetch|--source|
fetch|--source|minilm2
fetch|--source|../minilm
fetch|--profile|Laptop
course|--profile|
course|--profile|smok
course|--profile|../laptop
course|--profile|none.yaml
course|--profile|~nobody9/none.yaml
course|--only|
course|--only|,
course|--only|99
course|--only|four
course|--only|-1
course|--only|٠٤
course|--seeds|
course|--seeds|0,x
course|--seeds|1.5
course|--seeds|0,0
course|--seeds|1,,2
course|--seeds|²
course|--seeds|٣
course|--seeds=-1
course|--seeds|4294967296
course|--timeout|0
course|--timeout|-1
course|--timeout|nan
course|--timeout|²
course|-p
course|-p|RANK
course|-p|=3
course|-p|1a=3
course|-p|PROFILE=gpu
course|-p|SEEDS=[1]
course|-p|X=!!python/object/apply:os.system [ls]
course|-p|X=[
course|-p|X={a: 1, a: 2}
course|-p|X=&a [*a]
course|-p|X=.nan
course|-p|X={null: 1}
course|-p|X=!!binary aGk=
course|-p|X=0b_
course|-p|EPSILLON=0.4
reference|--only|
reference|--only|,
reference|--only|nonsense
reference|--only|sensitivity,nonsense
reference|--profile|smoke
reference|--seeds|x
claims|--profile|huge
where|
where|nonsense
where|../accuracy-parity
build-base|tower
build-base
build-base|encoder|--steps|0
build-base|encoder|--steps|-5
build-base|decoder|--steps|many
bench|--rounds|0
bench|--quick|--publish
runs|--prune|nonsense
runs|--prune|../x
runs|--all
runs|--prune|x|--all
intruders
intruders|-
intruders|-|-
intruders||
intruders|none|none
intruders|./none|./none
intruders|a/b/c|d
intruders|.|.|--k|0
intruders|.|.|--k|ten
intruders|.|.|--epsilon|0
intruders|.|.|--epsilon|nan
intruders|.|.|--epsilon|inf
intruders|.|.|--epsilon|-0.5
intruders|.|.|--epsilon|
intruders|.|.|--layers|(
intruders|.|.|--layers|[z-a]
intruders|.|.|--layers|x{99999999999}
intruders|.|.|--vectors|up
intruders|.|.|--device|tpu
intruders|.|.|--figure|x.gif
intruders|.|.|--figure|
intruders|.|.|--json|
""".split("\n")[1:-1]
ODD_WORDS = {"a line break": "a\nb", "a carriage return": "a\rb", "an escape sequence": "\x1b[31mred",
             "5,000 letters": LONG,
             "a lone surrogate": "a\udcffb", "a null character": "a\0b", "a right-to-left mark": "a\u202eb"}
TAKING_TEXT = {"where": ("where", "{}"), "--profile": ("claims", "--profile", "{}"),
               "a profile file": ("claims", "--profile", "{}.yaml"), "--source": ("fetch", "--source", "{}"),
               "course --only": ("course", "--only", "{}"), "reference --only": ("reference", "--only", "{}"),
               "--seeds": ("course", "--seeds", "{}"), "-p": ("course", "-p", "{}"),
               "BASE": ("intruders", "{}", "./none"),
               "runs": ("runs", "--prune", "{}"), "--json": ("intruders", "./none", "./none", "--json", "{}/")}


def cases(*, quick: bool) -> list[Case]:
    """Bad words; of the quick set a few of each kind."""
    lines = [refusal(f"`{line.replace('|', ' ')}`", "words", line.split("|") if line else []) for line in LINES]
    odd = [refusal(f"{odd} in {where}", "odd text", [part.format(word) for part in parts])
           for where, parts in TAKING_TEXT.items() for odd, word in ODD_WORDS.items()]
    return (lines[::19] + odd[::19] if quick else lines + odd) + outputs(quick=quick)


def outputs(*, quick: bool) -> list[Case]:
    """Places where no file can be written, for every option that names one."""
    kinds = {"a folder": Path.mkdir, "a link": _link, "a dangling link": _dangling, "a pipe": os.mkfifo,
             "a socket": _socket, "under a file": _under_a_file, "a device": None, "a name too long": None}
    asked = {"intruders --json": ["intruders", "./none", "./none", "--json"],
             "intruders --figure": ["intruders", "./none", "./none", "--figure"], "bench --json": ["bench", "--json"]}
    places = {"a device": lambda _: "/dev/null", "a name too long": lambda folder: f"{folder}/{'x' * 300}.png",
              "under a file": lambda folder: f"{folder}/out.png/x.png"}
    made = []
    for option, words in asked.items():
        for kind, make in kinds.items():
            if option == "intruders --figure" and kind == "a device":
                continue  # its name does not end in .png
            place = places.get(kind, lambda folder: f"{folder}/out.png")
            made.append(refusal(f"{option} onto {kind}", "outputs", [*words, place],
                                prepare=lambda folder, make=make: make and make(folder / "out.png")))
    made.append(refusal("--json and --figure into one file", "outputs", [
        "intruders", "./none", "./none", "--json", lambda folder: f"{folder}/a.png", "--figure",
        lambda folder: f"{folder}/a.png"]))
    made.append(refusal("--json over a file of the base", "outputs", [
        "intruders", str, "./none", "--json", lambda folder: f"{folder}/config.json"],
        prepare=lambda folder: (folder / "config.json").write_text("{}")))
    if device_name() != "cuda":
        made.append(refusal("a GPU where there is none", "words", ["intruders", ".", ".", "--device", "cuda"]))
    return made[::8] if quick else made


def _link(path: Path) -> None:
    (path.parent / "file").write_text("kept")
    path.symlink_to(path.parent / "file")


def _dangling(path: Path) -> None:
    path.symlink_to(path.parent / "nowhere")


def _under_a_file(path: Path) -> None:
    path.write_text("a file")


def _socket(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # the path of a socket must be short
    try:
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(path.name)
    finally:
        os.chdir(here)
