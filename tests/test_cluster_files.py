"""Files by which a cluster is started: their syntax, the commands in them, and the version of Ray that they name."""

import re
import shlex
import shutil
import subprocess

import pytest
import yaml
from ray.scripts.scripts import cli as ray_cli

from utils.course import cli
from utils.course.doctor import pins
from utils.paths import ROOT

FOLDER = ROOT / "utils" / "training" / "cluster"
FILES = {path.name: path.read_text(encoding="utf-8") for path in sorted(FOLDER.iterdir()) if path.suffix != ".py"
         and path.is_file()}
VALUES = {"PROFILE": "laptop", "SLURM_ARRAY_TASK_ID": "2", "shards": "8", "head": "host", "SLURM_CPUS_PER_TASK": "16",
          "SLURM_JOB_NUM_NODES": "4", "SKYPILOT_NUM_NODES": "4"}


def commands(text: str) -> list[list[str]]:
    """Words of every command of ours and of Ray's in a text, variables filled in."""
    text = re.sub(r" *\\\n[# ]*", " ", text).replace("$((SKYPILOT_NODE_RANK + 1))", "1")
    text = re.sub(r"\$\{?(\w+)(?::-[^}]*)?\}?", lambda found: VALUES.get(found[1], found[0]), text)
    # A command, or what a comment or a key of YAML shows as one, up to what the shell does with its result.
    found = re.findall(r"(?:^|[\s`])((?:python -m utils|ray [a-z]+(?:-[a-z]+)?) [^;#`\n]*)", text)
    lines = [re.split(r" 2>|; |  ", line)[0].strip() for line in found]
    found = [part for line in lines if "--" in line for part in line.split(" -- ")]  # what `symmetric-run` begins
    return [shlex.split(part) for part in found]


def parsed_by_ray(words: list[str]) -> None:
    """Let Ray's own command line read the words, without doing anything."""
    context = ray_cli.commands[words[0]].make_context(words[0], list(words[1:]))
    if words[0] == "symmetric-run":  # what it does not know itself it gives to `ray start`
        parsed_by_ray(["start", *context.params["ray_args_and_entrypoint"]])


@pytest.mark.parametrize("name", FILES)
def test_the_commands_in_it_exist(name):
    found = commands(FILES[name])
    assert found or name == "Dockerfile"
    for words in found:
        if words[0] == "python":
            assert words[:3] == ["python", "-m", "utils"]
            options = cli.command_line().parse_args(words[3:])
            assert words[3] != "train" or options.engine == ("ray" if "--engine" in words else "local")
        else:
            parsed_by_ray(words[1:])


def test_a_command_that_does_not_exist_is_found():
    assert [words[:3] for words in commands(FILES["slurm_ray.sh"])] == [
        ["ray", "symmetric-run", "--address"], ["python", "-m", "utils"]]
    assert commands("  srun python -m utils train --shard \"$SLURM_ARRAY_TASK_ID/$shards\"\n") == [
        ["python", "-m", "utils", "train", "--shard", "2/8"]]
    with pytest.raises(Exception, match="No such option"):  # of click, which is Ray's affair
        parsed_by_ray(commands("ray start --address=\"$head:6379\" --dashboard-agent-listen-porz=1\n")[0][1:])


@pytest.mark.skipif(shutil.which("bash") is None, reason="no bash")
@pytest.mark.parametrize("name", [name for name in FILES if not name.endswith((".md", "Dockerfile"))])
def test_the_shell_reads_it(name):
    text = FILES[name]
    parts = [text] if name.endswith(".sh") else [
        value for document in yaml.safe_load_all(text) for key, value in document.items() if key in ("setup", "run")]
    for part in parts:
        done = subprocess.run(["bash", "-n"], input=part, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_kubernetes_gets_one_job_whose_pods_share_the_store():
    volume, job = yaml.safe_load_all(FILES["kubernetes.yaml"])
    assert volume["spec"]["accessModes"] == ["ReadWriteMany"]
    cluster = job["spec"]["rayClusterSpec"]
    [workers] = cluster["workerGroupSpecs"]
    for group in (cluster["headGroupSpec"], workers):
        pod = group["template"]["spec"]
        [container] = pod["containers"]
        variables = {one["name"]: one["value"] for one in container["env"]}
        assert [one["mountPath"] for one in container["volumeMounts"]] == [variables["LORA_COURSE_CACHE"]]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == volume["metadata"]["name"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert f"docker build --tag {container['image']} " in FILES["Dockerfile"]
    assert cluster["rayVersion"] == pins()["ray"]
    assert job["spec"]["entrypoint"].startswith("python -m utils train --profile laptop --engine ray")


def test_the_image_has_the_pinned_ray_and_a_python_that_we_support():
    [image] = re.findall(r"^FROM rayproject/ray:(\S+)$", FILES["Dockerfile"], flags=re.MULTILINE)
    assert image == f"{pins()['ray']}-py311" and f"rayproject/ray:{image}-gpu" in FILES["Dockerfile"]
    assert f"Ray {pins()['ray'].rsplit('.', 1)[0]} " in FILES["README.md"]
    assert "--requirement requirements.txt" in FILES["Dockerfile"]


def test_skypilot_numbers_its_machines_from_zero_and_we_from_one():
    tasks = {name: yaml.safe_load(text) for name, text in FILES.items() if name.startswith("skypilot")}
    for name, task in tasks.items():
        assert set(task) <= {"name", "workdir", "num_nodes", "resources", "envs", "secrets", "setup", "run"}, name
        assert set(re.findall(r"\$\{?\(*([A-Z_]{4,})", task["run"])) <= {
            "PROFILE", "SKYPILOT_NODE_IPS", "SKYPILOT_NODE_RANK", "SKYPILOT_NUM_NODES"}, name
    assert '--shard "$((SKYPILOT_NODE_RANK + 1))/$SKYPILOT_NUM_NODES"' in tasks["skypilot_shards.yaml"]["run"]
    assert f"worker{{1..{tasks['skypilot_shards.yaml']['num_nodes'] - 1}}}" in FILES["skypilot_shards.yaml"]


def test_an_array_has_as_many_tasks_as_shards():
    text = FILES["slurm_array.sh"]
    [last], [shards] = re.findall(r"^#SBATCH --array=1-(\d+)$", text, re.MULTILINE), re.findall(r"^shards=(\d+)", text,
                                                                                                re.MULTILINE)
    assert last == shards


def test_the_page_names_every_file_and_the_readme_names_the_page():
    page = FILES["README.md"]
    assert set(re.findall(r"\]\(([\w.]+)\)", page)) == set(FILES) - {"README.md"}
    assert "utils/training/cluster/README.md" in (ROOT / "README.md").read_text(encoding="utf-8")
