"""What the command that counts imports: torch and safetensors, and nothing that takes longer than the count."""

import json
import os
import subprocess
import sys

import pytest
from small_checkpoints import blocks, factors, shapes_of, tuned, write, write_adapter

import utils.spectra
from utils.paths import ROOT

_COUNT = r"""
import json, sys
from utils.course.cli import main

status = main(["intruders", *sys.argv[1:]])
print(json.dumps({"status": status, "modules": sorted({name.partition(".")[0] for name in sys.modules})}))
"""
# Packages that the course needs elsewhere; each of them costs from a tenth of a second to two seconds.
HEAVY = {"accelerate", "datasets", "huggingface_hub", "lm_eval", "matplotlib", "pandas", "peft", "pyarrow", "pydantic",
         "requests", "scipy", "seaborn", "sklearn", "transformers", "trl", "yaml"}


def counting(tmp_path, *words) -> dict:
    """What a process that counts has imported."""
    done = subprocess.run([sys.executable, "-c", _COUNT, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          env=os.environ | {"LORA_COURSE_CACHE": str(tmp_path / "cache")}, check=False)
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["status"] == 0, done.stderr
    return found


@pytest.mark.process
@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_count_imports_torch_and_safetensors_alone(tmp_path, kind):
    """Also where names carry wrappers and the adapter has patterns, for which PEFT's own rule would import PEFT."""
    tensors = blocks("model.layers")
    base = write(tmp_path / "base", tensors, {"model_type": "llama"})
    if kind == "model":
        changed = write(tmp_path / "tuned", {f"module.{name}": tensor for name, tensor in tuned(tensors).items()})
    else:
        changed = write_adapter(tmp_path / "tuned", factors(shapes_of(tensors, "q_proj")), alpha_pattern={"q_proj": 8},
                                prefix="_orig_mod.base_model.model.")
    found = counting(tmp_path, base, changed, "--json", tmp_path / "report.json")
    assert {"torch", "safetensors"} <= set(found["modules"])
    assert set(found["modules"]) & HEAVY == set()


@pytest.mark.process
def test_transformers_comes_where_names_are_open(tmp_path):
    """The same list does see it, so the test above can fail."""
    tensors = blocks("language_model.model.layers") | blocks("vision_tower.layers", seed=1)
    base = write(tmp_path / "base", tensors, {"model_type": "llava",
                                              "architectures": ["LlavaForConditionalGeneration"]})
    parts = {module.replace("language_model.model", "model.language_model"): part
             for module, part in factors(shapes_of(tensors, "language.*q_proj")).items()}
    assert "transformers" in counting(tmp_path, base, write_adapter(tmp_path / "tuned", parts))["modules"]


def test_every_name_of_the_spectra_is_where_it_is_looked_for():
    """Names are looked up when they are first used; the list for readers and that for the look-up are one."""
    listed = {name for names in utils.spectra._HOMES.values() for name in names.split()}
    assert listed == set(utils.spectra.__all__)
    assert all(getattr(utils.spectra, name) is not None for name in utils.spectra.__all__)
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = utils.spectra.no_such_name
