"""Committing an executed course: notebooks with outputs, measured costs, and the README's generated blocks."""

import json
from pathlib import Path

import nbformat

from utils.course.bench import bench_table
from utils.course.runner import Course, record_costs
from utils.errors import CourseError
from utils.files import atomic_write, write_text
from utils.ledger.page import summary_markdown
from utils.ledger.reference import measured_costs, measured_training
from utils.paths import DATA, NOTEBOOKS, ROOT, cache_dir, notebook_files
from utils.profiles import PROFILE_NAMES, Profile, load_profile
from utils.reporting.publish import published_alt

README_FIGURES = ("03_top_ten", "04_count_against_epsilon", "06_pseudo_loss_against_rank", "09_learning_curves",
                  "10_forgetting_curves")
BENCH_RECORD = DATA / "reference" / "bench.json"
READ_PROFILE = "laptop"  # the profile whose outputs are committed in the notebooks
BEGIN, END = "<!-- {name}: written by `python -m utils course --publish` -->", "<!-- end of {name} -->"


def publish_course(profile: Profile, course: Course, *, whole: bool) -> None:
    """Record the costs, commit the laptop's executed notebooks over the sources, and rewrite the README's blocks.

    Parameters
    ----------
    whole : bool
        Whether the course was all notebooks.
    """
    record_costs(profile, course, whole=whole)
    for outcome in course.notebooks if profile.profile == READ_PROFILE else ():
        _publish_notebook(cache_dir() / "course" / profile.profile / f"{outcome.notebook}.ipynb",
                          NOTEBOOKS / f"{outcome.notebook}.ipynb")
    update_readme()


def _publish_notebook(executed: Path, target: Path) -> None:
    """Take the outputs, leave what Papermill added: its injected cell, its metadata, the paths of this machine."""
    notebook = nbformat.read(executed, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in cell.metadata.get("tags", [])]
    notebook.metadata.pop("papermill", None)
    count = 0
    for cell in notebook.cells:
        for key in ("papermill", "execution"):
            cell.metadata.pop(key, None)
        if cell.cell_type == "code":
            count += 1
            cell.execution_count = count
            for output in cell.outputs:
                if "execution_count" in output:
                    output["execution_count"] = count
    with atomic_write(target) as temporary:
        nbformat.write(notebook, temporary)


def update_readme(readme: Path = ROOT / "README.md") -> None:
    """Rewrite the README's table of measured time and memory from the committed records."""
    text = readme.read_text(encoding="utf-8")
    for name, content in (("figures", figure_list()), ("profiles", profile_table()), ("notebooks", notebook_table()),
                          ("bench", benchmark_table()), ("claims", summary_markdown(load_profile(READ_PROFILE)))):
        begin, end = BEGIN.format(name=name), END.format(name=name)
        if begin not in text or end not in text:
            raise CourseError(f"{readme} lacks the lines '{begin}' and '{end}' that hold its generated table.")
        text = text[:text.index(begin) + len(begin)] + f"\n{content}\n" + text[text.index(end):]
    write_text(readme, text)


def figure_list() -> str:
    """The README's figures with the alt texts that they were published with."""
    folder = Path("figures") / READ_PROFILE
    return "\n\n".join(f"![{published_alt(name, READ_PROFILE)}]({folder.as_posix()}/{name}.png)"
                       for name in README_FIGURES if (ROOT / folder / f"{name}.png").exists())


def profile_table() -> str:
    """Profiles with measured time and peak memory; a profile never run here says so."""
    lines = ["| profile | what for | first run | run again | peak memory |", "|---|---|---|---|---|"]
    for name in PROFILE_NAMES:
        costs = measured_costs(name)
        training = measured_training(name)
        cold, warm = _total(costs, "cold", before=training), _total(costs, "warm")
        peaks = [entry["peak_gib"] for notebook in costs.values() for entry in notebook.values()]
        peaks += [training["peak_gib"]] if training else []
        peak = f"{max(peaks):.1f} GiB" if peaks else "not measured yet"
        lines.append(f"| `{name}` | {load_profile(name).summary} | {cold} | {warm} | {peak} |")
    return "\n".join(lines)


def _total(costs: dict, kind: str, *, before: dict | None = None) -> str:
    """Minutes of all notebooks that are there, and of what was trained before them; those never measured are named."""
    measured = {number: costs.get(path.stem, {}) for number, path in notebook_files(NOTEBOOKS).items()}
    seconds = [entry[kind]["seconds"] for entry in measured.values() if kind in entry]
    seconds += [before["seconds"]] if before and seconds else []
    missing = ", ".join(number for number, entry in measured.items() if kind not in entry)
    without = f" without {missing} (not measured)" if missing else ""
    return f"{sum(seconds) / 60:.1f} min{without}" if seconds else "not measured yet"


def benchmark_table() -> str:
    """The committed benchmark, or a line that says there is none yet."""
    found = committed_bench()
    return "Not measured yet: `python -m utils bench --publish`." if found is None else bench_table(found)


def committed_bench() -> dict | None:
    """What ``python -m utils bench --publish`` wrote last; None before the first time."""
    return json.loads(BENCH_RECORD.read_text(encoding="utf-8")) if BENCH_RECORD.exists() else None


def notebook_table() -> str:
    """Notebooks with their titles and what each took at `laptop`."""
    costs = measured_costs(READ_PROFILE)
    lines = ["| notebook | shows | first run | run again |", "|---|---|---|---|"]
    for path in notebook_files(NOTEBOOKS).values():
        title, first, *_ = nbformat.read(path, as_version=4).cells[0].source.split("\n\n")
        title, purpose = title.lstrip("# "), " ".join(first.split())
        cost = costs.get(path.stem, {})
        times = [f"{cost[kind]['seconds']:.0f} s" if kind in cost else "" for kind in ("cold", "warm")]
        lines.append(f"| [{title}](notebooks/{path.name}) | {purpose} | {times[0]} | {times[1]} |")
    return "\n".join(lines)
