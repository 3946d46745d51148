"""What keeps the house in order: packages, lint, hooks, workflows, licence, citation; each is as it is promised."""

import ast
import hashlib
import importlib.metadata
import json
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from itertools import chain, pairwise
from pathlib import Path

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from utils.course import cli
from utils.errors import UsageError
from utils.paths import NOTEBOOKS, ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
SUPPORTED = ["3.11", "3.12", "3.13"]
# Named in requirements.txt, and not by any range: pip installs the project itself with it.
BUILD_ONLY = {"setuptools"}
OUTPUT = (".venv/", "figures/yours/")  # what a clone does not have yet
# sha256 of the Apache License 2.0 as its foundation publishes it, before the copyright line was filled in.
APACHE = "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


def program(name: str) -> str:
    """A program of the environment that runs the tests."""
    found = shutil.which(name, path=str(Path(sys.executable).parent))
    assert found, f"{name} is missing from this environment; run `make setup`."
    return found


def run(*words: str) -> str:
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{done.stdout[-6000:]}{done.stderr[-2000:]}"
    return done.stdout


# Lint ---------------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_ruff_finds_nothing():
    run(program("ruff"), "check")


@pytest.mark.process
def test_no_arrow_runs_back_up():
    run(program("lint-imports"), "--no-logo")


@pytest.mark.process
def test_the_types_of_spectra_profiles_and_training_hold():
    run(program("mypy"))


def make_lines(target: str) -> list[str]:
    """What a target of the Makefile runs, without the environment's folder."""
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    rule = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, flags=re.MULTILINE)
    assert rule, f"Expected a target {target} in the Makefile."
    return [line.strip().lstrip("@").replace("$(BIN)/", "") for line in rule[1].splitlines()]


def test_the_hooks_are_what_make_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"], "a hook would be downloaded"
    entries = [hook["entry"].removeprefix(".venv/bin/").removesuffix(" --force-exclude") for hook in hooks[0]["hooks"]]
    assert entries == make_lines("lint")
    assert {hook["language"] for hook in hooks[0]["hooks"]} == {"system"}


def test_every_room_and_every_study_has_a_floor():
    """A module that no contract names could import from anywhere."""
    floors = {contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]}
    for name, folder in (("house", ROOT / "utils"), ("studies", ROOT / "utils" / "studies")):
        named = {part.strip() for layer in floors[name]["layers"] for part in re.split(r"[|:]", layer)}
        there = {path.stem for path in folder.glob("[!_]*.py")}
        there |= {path.parent.name for path in folder.glob("*/__init__.py")}
        assert floors[name]["exhaustive"] and named == there


# Packages -----------------------------------------------------------------------------------------------------------


def ranges(*extras: str) -> dict[str, Requirement]:
    """Every package that the project declares, those of the extras included, by its canonical name."""
    found = [*PROJECT["project"]["dependencies"], *chain(*(PROJECT["project"]["optional-dependencies"][extra]
                                                           for extra in extras))]
    return {canonicalize_name(Requirement(text).name): Requirement(text) for text in found}


def pins(*, direct: bool = False) -> dict[str, Version]:
    """The pins of requirements.txt; `direct`: those above the part that pip pulled in."""
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    text = text.split("# What the above pulled in")[0] if direct else text
    found = re.findall(r"^([A-Za-z0-9_.-]+)==([^\s;#]+)", text, flags=re.MULTILINE)
    return {canonicalize_name(name): Version(version) for name, version in found}


def test_every_range_admits_its_pin():
    """The tests run at the pins and a reader may install by the ranges: a pin outside of its range tests nothing."""
    every = ranges("gpu", "ray", "test", "lint")
    assert set(every) - set(pins()) == {"bitsandbytes"}, "only what has no wheels for every system goes without a pin"
    outside = {name: str(wanted) for name, wanted in every.items()
               if name in pins() and not wanted.specifier.contains(pins()[name])}
    assert outside == {}


def test_every_pin_of_our_own_has_a_range():
    assert set(pins(direct=True)) - set(ranges("ray", "test", "lint")) == BUILD_ONLY


def test_every_range_is_closed_on_both_sides():
    """An open range takes a release that nobody has tried; one that begins below the pin was never tested there."""
    for name, wanted in ranges("gpu", "ray", "test", "lint").items():
        assert {part.operator for part in wanted.specifier} == {">=", "<"}, f"{name}: {wanted}"


def imported(source: str) -> set[str]:
    """Top-level names of everything that Python text imports."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module.split(".")[0])
    return found - set(sys.stdlib_module_names) - {"utils"}


def used_by(folder: str) -> set[str]:
    if folder == "notebooks":
        cells = [cell for path in sorted(NOTEBOOKS.glob("*.ipynb")) for cell in nbformat.read(path, as_version=4).cells]
        return set().union(*(imported(cell.source) for cell in cells if cell.cell_type == "code"))
    modules = [imported(path.read_text(encoding="utf-8")) for path in (ROOT / folder).rglob("*.py")]
    return set().union(*modules) - {path.stem for path in (ROOT / folder).glob("*.py")}


@pytest.mark.parametrize("folder, extras", [
    ("utils", ["gpu", "ray"]), ("notebooks", []), ("tests", ["gpu", "ray", "test"])])
def test_everything_that_is_imported_is_declared(folder, extras):
    """A package that only came along with another one is gone on the day when that one drops it."""
    declared = set(ranges(*extras))
    carried = importlib.metadata.packages_distributions() | {"bitsandbytes": ["bitsandbytes"]}
    used = used_by(folder)
    assert len(used) > 4
    assert {name for name in used if not declared & {canonicalize_name(of) for of in carried.get(name, [])}} == set()


def test_the_console_script_is_the_command_line():
    [script] = [entry for entry in importlib.metadata.entry_points(group="console_scripts")
                if entry.name == "lora-course"]
    assert script.load() is cli.main
    assert run(program("lora-course"), "claims", "--help").startswith("usage: lora-course claims ")


def test_files_that_are_no_modules_are_packaged():
    patterns = PROJECT["tool"]["setuptools"]["package-data"]["*"]
    there = [path for path in (ROOT / "utils").rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    packages = {path.parent for path in (ROOT / "utils").rglob("__init__.py")}
    assert len(there) > 5
    for path in there:
        package = next(parent for parent in path.parents if parent in packages)
        assert any(path.relative_to(package).match(pattern) for pattern in patterns), path


def test_the_supported_pythons_are_the_same_everywhere():
    bounds = f">={SUPPORTED[0]},<3.{int(SUPPORTED[-1].split('.')[1]) + 1}"
    assert PROJECT["project"]["requires-python"] == bounds
    assert [text.split(" :: ")[-1] for text in PROJECT["project"]["classifiers"] if "Python :: 3." in text] == SUPPORTED
    assert f"python{bounds}" in yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))["dependencies"]
    assert "(3, 11) <= sys.version_info < (3, 14)" in (ROOT / "Makefile").read_text(encoding="utf-8")
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    matrix = tests["jobs"]["test"]["strategy"]["matrix"]
    assert matrix["python"] == SUPPORTED
    assert {system.split("-")[0] for system in matrix["os"]} == {"ubuntu", "macos", "windows"}
    assert Version(PROJECT["tool"]["mypy"]["python_version"]) == Version(SUPPORTED[0])
    assert PROJECT["tool"]["ruff"]["target-version"] == "py" + SUPPORTED[0].replace(".", "")


# Workflows ----------------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_the_workflows_are_valid_and_give_nothing_away():
    run(program("check-jsonschema"), "--builtin-schema", "vendor.github-workflows", *map(str, WORKFLOWS))
    run(program("zizmor"), "--offline", "--no-progress", *map(str, WORKFLOWS))


def commands() -> list[str]:
    """Every line that a workflow runs, continued lines joined; what follows `||` or `#` belongs to the shell."""
    steps = [step for path in WORKFLOWS for job in yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
             for step in job["steps"]]
    lines = "\n".join(step["run"] for step in steps if "run" in step).replace("\\\n", " ").splitlines()
    return sorted({re.split(r"\|\||\s#", line)[0].strip() for line in lines} - {""})


def test_the_workflows_run_more_than_nothing():
    assert len(WORKFLOWS) == 3 and len(commands()) >= 8


@pytest.mark.process
@pytest.mark.parametrize("command", [line for line in commands() if not line.startswith(("number=", "if ["))])
def test_the_workflows_commands_exist(command):
    """Each command that can be tried here is: make without doing it, ours up to their options, pip up to its files."""
    words = shlex.split(command)
    if words[0] == "make":
        if shutil.which("make"):
            run("make", "--dry-run", *words[1:])
        else:
            make_lines(words[1])
        return
    assert words[:2] == ["python", "-m"], f"`{command}` is of no kind that this test knows how to try"
    module, rest = words[2], words[3:]
    if module == "utils":
        cli.command_line().parse_args(rest)
    elif module == "pip":
        assert rest[0] == "install"
        if re.fullmatch(r"[\w-]+==[\d.]+", rest[1]):  # a tool of that workflow alone, pinned
            return
        run(sys.executable, "-m", "pip", *rest, "--help")
        named = [Path(value) for flag, value in pairwise(rest) if flag in ("-r", "-e", "--editable")]
        assert all((ROOT / re.sub(r"\[.*\]", "", str(path))).exists() for path in named) and named
        asked = {extra for path in named for part in re.findall(r"\[(.*)\]", str(path)) for extra in part.split(",")}
        assert asked <= set(PROJECT["project"]["optional-dependencies"])
    elif module == "pip_audit":
        assert (ROOT / rest[rest.index("--requirement") + 1]).exists() and "--no-deps" in rest
    else:
        assert module == "pytest"
        chosen = [value for flag, value in pairwise(rest) if flag == "--deselect"]
        for identifier in chosen:
            file, name = identifier.split("::")
            assert f"def {name}(" in (ROOT / file).read_text(encoding="utf-8")


def test_a_command_with_a_wrong_option_would_be_noticed():
    with pytest.raises(UsageError):
        cli.command_line().parse_args(["fetch", "--profil-e", "smoke"])


def test_windows_runs_what_the_readme_says_without_make():
    """The README's lines for those without make, with pytest in the course's place."""
    tests = yaml.safe_load((ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8"))
    [step] = [step for step in tests["jobs"]["test"]["steps"] if "Windows" in step.get("if", "") and "==" in step["if"]]
    lines = [line.removeprefix("python -m ") for line in step["run"].splitlines()]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert all(line in readme for line in lines[:2])
    assert [f"python -m {line}" for line in lines[2:]] == [
        line.replace("$(WORKERS)", "2") for line in make_lines("test")]


# Licence, citation, changes -----------------------------------------------------------------------------------------


def test_the_licence_is_apaches_own_text():
    text = (ROOT / "LICENSE").read_text(encoding="utf-8")
    ours = "   Copyright 2026 the contributors of this course\n"
    assert text.count(ours) == 1 and PROJECT["project"]["license"] == "Apache-2.0"
    original = text.replace(ours, "   Copyright [yyyy] [name of copyright owner]\n")
    assert hashlib.sha256(original.encode()).hexdigest() == APACHE


@pytest.mark.process
def test_the_citation_is_valid_and_cites_what_the_readme_cites():
    run(program("check-jsonschema"), "--builtin-schema", "vendor.citation-file-format", "CITATION.cff")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == PROJECT["project"]["version"] and cited["license"] == PROJECT["project"]["license"]
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## How to cite")[1].split("\n## ")[0]
    section = " ".join(section.split())
    assert len(cited["references"]) == 3
    for paper in cited["references"]:
        assert paper["title"] in section and paper["authors"][0]["family-names"] in section
        assert str(paper["year"]) in section and paper["url"].rsplit("/", 1)[1] in section


def test_the_changelog_begins_with_what_is_not_released():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(.+?)\](?: - (\d{4}-\d{2}-\d{2}))?$", text, flags=re.MULTILINE)
    assert headings[0] == ("Unreleased", "") and all(date for _, date in headings[1:])
    assert PROJECT["project"]["version"] in [name for name, _ in headings]
    kinds = set(re.findall(r"^### (.+)$", text, flags=re.MULTILINE))
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


def test_contributing_names_files_and_commands_that_exist():
    """A path in backticks is a file or folder of the project; a command of ours has the options that it is given."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    spans = re.findall(r"`([^`\n]+)`", text)
    paths = [span for span in spans if re.fullmatch(r"[\w.-]+(/[\w.-]+)+/?", span) and not span.startswith(OUTPUT)]
    assert len(paths) > 10
    assert [path for path in paths if not (ROOT / path).exists()] == []
    blocks = re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    ours = [shlex.split(line, comments=True)[3:] for line in lines if line.startswith(".venv/bin/python -m utils ")]
    assert ours
    for words in ours:
        cli.command_line().parse_args(words)
    for line in lines:
        if line.startswith("make "):
            assert f"\n{line.split()[1]}:" in (ROOT / "Makefile").read_text(encoding="utf-8"), line


def test_every_ignored_folder_is_not_tracked():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("a downloaded archive has no git")
    listed = subprocess.run(["git", "ls-files", "--cached", "--ignored", "--exclude-standard"], cwd=ROOT,
                            capture_output=True, text=True, check=True)
    assert listed.stdout == ""


def test_json_of_notebooks_is_as_jupyter_writes_it():
    """A notebook that a tool wrote with another indent shows every line as changed at the next save."""
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        text = path.read_text(encoding="utf-8")
        assert text == json.dumps(json.loads(text), indent=1, ensure_ascii=False) + "\n", path.name


# Sizes --------------------------------------------------------------------------------------------------------------


def lines_of(*folders: str) -> dict[str, int]:
    paths = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): len(path.read_text(encoding="utf-8").splitlines()) for path in paths}


def test_no_module_and_no_test_file_is_too_long():
    assert {path: count for path, count in lines_of("utils").items() if count > 400} == {}
    assert {path: count for path, count in lines_of("tests").items() if count > 700} == {}


def test_no_room_holds_a_third_of_the_code():
    """`utils/reporting` once held 40 %; a study is a room of its own."""
    counted, rooms = lines_of("utils"), {}
    for path, count in counted.items():
        parts = path.split("/")[1:-1]
        room = "/".join(parts[:2] if parts[:1] == ["studies"] else parts[:1])
        rooms[room] = rooms.get(room, 0) + count
    assert max(rooms.values()) < 0.35 * sum(counted.values()), rooms
