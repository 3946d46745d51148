"""Profile files that no course can be run with."""

import os
from collections.abc import Callable
from pathlib import Path

from utils.course.chaos.ask import refusal
from utils.course.chaos.case import Case
from utils.profiles.loader import PROFILE_NAMES

SMOKE = Path(__file__).parents[2] / "profiles" / "smoke.yaml"
_LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
_MERGES = "a: &a {k0: 0}\n" + "".join(
    f"{new}: &{new} {{<<: [{', '.join([f'*{old}'] * 10)}]}}\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True))
TEXTS: dict[str, str | bytes] = {
    "nothing": "", "a comment": "# nothing", "a number": "7", "a list": "- 1\n- 2", "a text": "profile", "null": "null",
    "no UTF-8": b"\xff\xfe\x00p", "UTF-16": "profile: smoke".encode("utf-16"), "null characters": "profile: \0",
    "an open bracket": "profile: [smoke", "a tab": "profile:\n\t- smoke", "two documents": "a: 1\n---\nb: 2",
    "a key twice": "profile: smoke\nprofile: smoke", "an unknown alias": "profile: *smoke", "a circle": "&a [*a]",
    "a circle in a mapping": "&a {profile: *a}", "a merge of a number": "<<: 3", "a merge of itself": "&a {<<: *a}",
    "a Python object": "profile: !!python/object/apply:os.system [ls]", "a tag of its own": "profile: !mine smoke",
    "a tag that does not fit": "profile: !!timestamp soon", "a set": "profile: !!set {a}",
    "bytes": "profile: !!binary aGk=",
    "a list as a key": "? [a, b]\n: 1", "a mapping as a key": "? {a: 1}\n: 1", "a truth value as a key": "on: 1",
    "no key": "null: 1", "a number as a key": "1.5: 2", "infinity": "profile: .inf", "no number": "profile: .nan",
    "5,000 digits": f"profile: {'9' * 5000}", "an empty binary number": "profile: 0b_",
    "100,000 brackets": "[" * 100_000,
    "100,000 braces": "{a: " * 100_000, "deep lines": "".join(" " * n + "a:\n" for n in range(200)),
    "a thousand million laughs": _LAUGHS, "a thousand million merges": _MERGES, "an equals sign": "=: 1",
    "2 MB": "a: 1\n" * 400_000, "a line break in a key": '"a\\nb": 1', "an escape in a value": 'profile: "\\e[31m"',
}
# Changes of smoke's own text: what is looked for, and what stands there instead.
CHANGES: dict[str, tuple[str, str]] = {
    "another name": ("profile: smoke", "profile: mine"), "a date as a name": ("profile: smoke", "profile: 2026-01-01"),
    "a key too many": ("profile: smoke", "profile: smoke\ncolour: red"),
    "evidence as a text": ("evidence: false", "evidence: 'false'"),
    "a date for a truth": ("evidence: false", "evidence: 2026-01-01"),
    "no key": ("evidence: false", ""), "a list for a text": ("profile: smoke", "profile: [smoke]"),
    "whole set in the file": ("evidence: false", "evidence: false\nwhole: 1"),
    "a huge seed": ("evidence: false", "evidence: false\nseeds: [99999999999999999999]"),
}


def _text(text: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / "p.yaml").write_bytes(text.encode() if isinstance(text, str) else text)


def _changed(old: str, new: str) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        text = SMOKE.read_text(encoding="utf-8")
        if old not in text:
            raise ValueError(f"{SMOKE.name} has no '{old}' any more; change what the case looks for")
        (folder / "p.yaml").write_text(text.replace(old, new, 1), encoding="utf-8")

    return write


def cases(*, quick: bool) -> list[Case]:
    """Profiles by their text, by what else lies under their name, and by their name."""
    asked = ["claims", "--profile", lambda folder: f"{folder}/p.yaml"]
    texts = [refusal(f"a profile of {name}", "profile files", asked, prepare=_text(text))
             for name, text in TEXTS.items()]
    changed = [refusal(f"smoke with {name}", "profile files", asked, prepare=_changed(*change))
               for name, change in CHANGES.items()]
    places = {"a folder": lambda folder: (folder / "p.yaml").mkdir(),
              "a pipe": lambda folder: os.mkfifo(folder / "p.yaml"),
              "a dangling link": lambda folder: (folder / "p.yaml").symlink_to(folder / "none"),
              "a circle of links": lambda folder: (folder / "p.yaml").symlink_to(folder / "p.yaml"),
              "a device": lambda folder: (folder / "p.yaml").symlink_to("/dev/zero")}
    odd = [refusal(f"{name} as a profile", "profile files", asked, prepare=make) for name, make in places.items()]
    odd += [refusal(f"{name} by another case", "profile files", ["claims", "--profile", name.upper()])
            for name in PROFILE_NAMES]
    return (texts[::13] + changed[::9] + odd[1:2]) if quick else texts + changed + odd
