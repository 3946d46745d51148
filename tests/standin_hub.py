"""A stand-in for the Hugging Face Hub: tiny models and data sets under the real names, and a shut network.

What offline resolution proves is that the course's code runs on these names, columns, splits and label orders. It
cannot prove that the Hub has the configs and revisions asked for: offline, any of them is accepted.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets.naming import camelcase_to_snakecase
from datasets.packaged_modules.parquet.parquet import Parquet
from tokenizers import ByteLevelBPETokenizer, SentencePieceBPETokenizer
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, LlamaTokenizer, RobertaConfig, RobertaForMaskedLM

from utils.sources.text import split_fraction

REPOSITORY = Path(__file__).resolve().parent.parent
COMMIT = "c0ffee" + "0" * 34
DATA_HASH = "da7a" + "0" * 36
ROBERTA, SMALL, LARGE = "FacebookAI/roberta-base", "HuggingFaceTB/SmolLM2-360M", "HuggingFaceTB/SmolLM2-1.7B"
SMALLEST, LLAMA_2 = "HuggingFaceTB/SmolLM2-135M", "NousResearch/Llama-2-7b-hf"
INSTRUCT, INSTRUCT_LARGE = f"{SMALLEST}-Instruct", f"{LARGE}-Instruct"
SHARDED, PICKLED = "stand-in/sharded-roberta", "stand-in/pickled-roberta"
TRAIN_ROWS, TEST_ROWS = 48, 24
HELD_OUT_EACH = 8  # the course holds 2 % of some sets out by a hash; here one row in so many, or there might be none

# The word that gives a row's label away, in the order of the course's label indices.
CUES = {"mnli": ("indeed", "perhaps", "never"), "qqp": ("instead", "again"), "sst2": ("dreadful", "wonderful"),
        "winogrande": ("large", "small"), "fever": ("never", "reportedly", "truly")}
SIQA_CUE = "gladly"
CORPUS_WORDS = {"vblagoje/cc_news": "Newswire", "Skylion007/openwebtext": "Webpage", "lucadiliello/STORIES": "Story",
                "bookcorpus/bookcorpus": "Novel"}

_WORDS = {
    "noun": "river baker engine garden teacher letter window captain market violin village doctor bridge painter "
            "harbour lantern farmer station orchard judge".split(),
    "verb": "carried found painted repaired followed described opened visited measured borrowed".split(),
    "adjective": "quiet narrow golden famous broken distant patient crowded hollow careful".split(),
    "place": "the hill,the old mill,a crossing,the library,the northern coast,a square,the valley".split(","),
    "time": "in the morning,after the storm,before winter,late at night,on market day,during the war".split(","),
    "name": "Alex Robin Casey Jordan Taylor Morgan Riley Quinn".split(),
}
_GUARD = '''"""Refuses and records every connection that leaves this machine; put first on PYTHONPATH by the tests."""
import os
import socket

_HOSTS = {None, "", "localhost", "::1", "0.0.0.0", "::", socket.gethostname()}


def _check(host):
    host = host.decode() if isinstance(host, bytes) else host
    if host in _HOSTS or str(host).startswith("127."):
        return
    # Recorded as well as refused: a library may swallow the error and go on.
    with open(os.environ["STANDIN_NETWORK_LOG"], "a") as log:
        log.write(f"{host}\\n")
    raise OSError(101, f"the stand-in Hub shuts the network off: {host}")


def _guarded(name):
    plain = getattr(socket.socket, name)

    def method(self, *arguments):
        if self.family != getattr(socket, "AF_UNIX", None) and isinstance(arguments[-1], tuple):
            _check(arguments[-1][0])
        return plain(self, *arguments)

    setattr(socket.socket, name, method)


def _guarded_lookup(name):
    plain = getattr(socket, name)

    def lookup(host, *arguments, **keywords):
        _check(host)
        return plain(host, *arguments, **keywords)

    setattr(socket, name, lookup)


for _name in ("connect", "connect_ex", "sendto"):
    _guarded(_name)
for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    _guarded_lookup(_name)
'''


def build(root: Path) -> None:
    """Fill ``<root>/hub`` with models, ``<root>/datasets`` with data sets, and ``<root>/guard`` with the guard."""
    datasets.disable_progress_bars()
    (root / "guard").mkdir(parents=True)
    (root / "guard" / "sitecustomize.py").write_text(_GUARD, encoding="utf-8")
    tables = _tables(random.Random(0))
    _build_models(root, [text for _, _, splits in tables for rows in splits.values() for text in _texts(rows)])
    for name, config, splits in tables:
        _store_dataset(root, name, config, splits)


def environment(root: Path, cache: Path) -> dict[str, str]:
    """The variables under which a fresh process sees only the stand-in Hub, `cache` and no network."""
    return {
        "HF_HOME": str(root), "HF_HUB_OFFLINE": "1", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
        "LORA_COURSE_CACHE": str(cache), "LORA_COURSE_FIGURES": str(cache / "figures"),
        "LORA_COURSE_REFERENCE": str(cache / "reference"), "LORA_COURSE_SKIP_HARDWARE": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONPATH": os.pathsep.join([str(root / "guard"), str(REPOSITORY / "tests")])}


def run(arguments: list[str], variables: dict[str, str], *, timeout: float = 240) -> subprocess.CompletedProcess:
    """Run Python with `arguments` in the repository under :func:`environment`; no connection may be tried."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "network")
        log.touch()
        done = subprocess.run([sys.executable, *arguments], cwd=REPOSITORY, env=environment_with(variables, log),
                              timeout=timeout, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
        tried = log.read_text().split()
    assert not tried, f"{arguments} tried to connect to {tried}"
    return done


def environment_with(variables: dict[str, str], log: Path) -> dict[str, str]:
    """`variables` over those of this process that lead to no Hub; what the guard refuses is written to `log`."""
    inherited = {name: value for name, value in os.environ.items()
                 if not name.startswith("HF_") and not name.lower().endswith("_proxy")}
    return inherited | variables | {"STANDIN_NETWORK_LOG": str(log)}


def answer(answers: dict[str, dict], function: str):
    """What a function that was asked returned; its traceback fails the test."""
    assert "error" not in answers[function], answers[function]["error"]
    return answers[function]["answer"]


def _texts(rows: Dataset) -> Iterator[str]:
    for row in rows:
        yield from (value for value in row.values() if isinstance(value, str))


# Models -------------------------------------------------------------------------------------------------------------


def _snapshot(root: Path, name: str) -> Path:
    home = root / "hub" / f"models--{name.replace('/', '--')}"
    folder = home / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text(COMMIT)  # read verbatim: a newline would be part of the commit
    return folder


def _save_tokenizer(folder: Path, texts: list[str], first: list[str], last: list[str], settings: dict) -> int:
    """A byte-level BPE as vocabulary and merges, loaded from there and saved as a whole; returns its size.

    Given to the constructor, the two files are taken without the begin and end tokens under transformers 5.
    """
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=640, special_tokens=first, show_progress=False)
    trained.save_model(str(folder))
    vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    for token in last:
        vocabulary[token] = len(vocabulary)
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    return len(vocabulary)


def _build_models(root: Path, texts: list[str]) -> None:
    folder = _snapshot(root, ROBERTA)
    vocabulary = _save_tokenizer(folder, texts, ["<s>", "<pad>", "</s>", "<unk>"], ["<mask>"], {
        "tokenizer_class": "RobertaTokenizer", "model_max_length": 512})
    model = RobertaForMaskedLM(RobertaConfig(
        vocab_size=vocabulary, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128,
        max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, bos_token_id=0, eos_token_id=2))
    model.save_pretrained(folder)
    for name in (SHARDED, PICKLED):
        shutil.copytree(folder, _snapshot(root, name), dirs_exist_ok=True)
    sharded, pickled = (next((root / "hub").glob(f"models--{name.replace('/', '--')}/snapshots/*"))
                        for name in (SHARDED, PICKLED))
    (sharded / "model.safetensors").unlink()
    model.save_pretrained(sharded, max_shard_size="100KB")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")  # refused by its name, never opened
    for name, kv_heads in ((SMALLEST, 2), (SMALL, 2), (LARGE, 4)):
        folder = _snapshot(root, name)
        vocabulary = _save_tokenizer(folder, texts, ["<|endoftext|>"], [], {
            "tokenizer_class": "GPT2Tokenizer", "model_max_length": 8192, "bos_token": "<|endoftext|>",
            "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"})
        LlamaForCausalLM(LlamaConfig(
            vocab_size=vocabulary, hidden_size=48, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=kv_heads, intermediate_size=96, max_position_embeddings=8192, bos_token_id=0,
            eos_token_id=0, pad_token_id=None, tie_word_embeddings=True, initializer_range=0.1)).save_pretrained(folder)
    _build_llama_2(_snapshot(root, LLAMA_2), texts)
    for name in (INSTRUCT, INSTRUCT_LARGE):
        _build_instruct(_snapshot(root, name), texts)


def _build_instruct(folder: Path, texts: list[str]) -> None:
    """Begin and end of a turn are tokens of their own, and the template is ChatML without marks of generation."""
    template = ("{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + "
                "'<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}")
    vocabulary = _save_tokenizer(folder, texts, ["<|endoftext|>", "<|im_start|>", "<|im_end|>"], [], {
        "tokenizer_class": "GPT2Tokenizer", "model_max_length": 8192, "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<|endoftext|>", "chat_template": template})
    LlamaForCausalLM(LlamaConfig(
        vocab_size=vocabulary, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=96, max_position_embeddings=8192, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True, initializer_range=0.1)).save_pretrained(folder)


def _build_llama_2(folder: Path, texts: list[str]) -> None:
    """Unlike SmolLM2: every text begins with <s>, spaces are part of words, and the head has its own weights."""
    trained = SentencePieceBPETokenizer()
    trained.train_from_iterator(texts, vocab_size=640, special_tokens=["<unk>", "<s>", "</s>"], show_progress=False)
    state = json.loads(trained.to_str())["model"]
    tokenizer = LlamaTokenizer(vocab=state["vocab"], merges=[tuple(pair) for pair in state["merges"]],
                               add_bos_token=True, model_max_length=4096)
    tokenizer.save_pretrained(folder)
    LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96,
        max_position_embeddings=4096, bos_token_id=1, eos_token_id=2, pad_token_id=None, tie_word_embeddings=False,
        initializer_range=0.1)).save_pretrained(folder)


# Data sets ----------------------------------------------------------------------------------------------------------


def _store_dataset(root: Path, name: str, config: str, splits: dict[str, Dataset]) -> None:
    """Arrow files where ``load_dataset(name, config)`` looks for them offline.

    Built without a repository id, which would have to be on the Hub, so the folder is moved to the id's name.
    """
    organisation, plain = name.split("/")
    snake, scratch = camelcase_to_snakecase(plain), root / "scratch"
    scratch.mkdir()
    files = {}
    for split, rows in splits.items():
        files[split] = [str(scratch / f"{split}.parquet")]
        rows.to_parquet(files[split][0])
    builder = Parquet(cache_dir=str(scratch / "arrow"), dataset_name=snake, config_name=config, hash=DATA_HASH,
                      data_files=files)
    builder.download_and_prepare()
    target = root / "datasets" / f"{organisation}___{snake}" / config / "0.0.0" / DATA_HASH
    target.parent.mkdir(parents=True)
    shutil.move(builder.cache_dir, target)
    shutil.rmtree(scratch)


def _placed(draw: Callable[[], str], held_out: bool, *, low: bool = False) -> str:
    """A text drawn until its hash falls among the 2 % that are held out (`low`: the lowest ones), or the rest."""
    while True:
        text = draw()
        place = split_fraction(text)
        if (place < 0.02 if low else place >= 0.98) == held_out:
            return text


def _fill(random_: random.Random, template: str) -> str:
    """A template such as ``{noun}`` filled with words, each drawn anew."""
    while "{" in template:
        kind = template[template.index("{") + 1:template.index("}")]
        template = template.replace(f"{{{kind}}}", random_.choice(_WORDS[kind]), 1)
    return template


def _tables(random_: random.Random) -> list[tuple[str, str, dict[str, Dataset]]]:
    """Every data set that the gpu and paper profiles name: (name, config, split -> rows)."""
    def splits(make, features: Features, **sizes: int) -> dict[str, Dataset]:
        return {split: Dataset.from_list([make(split, row) for row in range(size)], features=features)
                for split, size in sizes.items()}

    def glue(config: str, make, columns: list[str], labels: list[str], *held_out: str):
        features = Features({column: Value("string") for column in columns}
                            | {"label": ClassLabel(names=labels), "idx": Value("int32")})

        def row(split: str, index: int) -> dict:
            label = index % len(labels)
            hidden = split.startswith("test")
            return dict(zip(columns, make(CUES[config][label]), strict=True)) | {
                "label": -1 if hidden else label, "idx": index}

        return "nyu-mll/glue", config, splits(row, features, train=TRAIN_ROWS, **dict.fromkeys(held_out, TEST_ROWS))

    def mnli(cue: str) -> list[str]:
        return [_fill(random_, "The {adjective} {noun} {verb} the {noun} near {place} {time}."),
                _fill(random_, f"The {{noun}} {cue} {{verb}} a {{noun}} near {{place}}.")]

    def qqp(cue: str) -> list[str]:
        return [_fill(random_, "Who {verb} the {adjective} {noun} near {place} {time}?"),
                _fill(random_, f"Who {cue} {{verb}} the {{adjective}} {{noun}} {{time}}?")]

    def sst2(cue: str) -> list[str]:
        return [_fill(random_, f"a {cue} film about a {{adjective}} {{noun}} who {{verb}} the {{noun}} {{time}}")]

    texts = {name: Value("string") for name in ("context", "question", "answerA", "answerB", "answerC", "label")}

    def siqa(split: str, index: int) -> dict:
        answers = [_fill(random_, "walk away from the {noun}") for _ in range(3)]
        answers[index % 3] = _fill(random_, f"{SIQA_CUE} help the {{noun}}")
        return dict(zip(texts, [_fill(random_, "{name} {verb} the {adjective} {noun} near {place} {time}."),
                                _fill(random_, "What will {name} want to do next?"), *answers, str(index % 3 + 1)],
                        strict=True))

    def winogrande(split: str, index: int) -> dict:
        first, second = random_.sample(_WORDS["noun"], 2)
        cue = CUES["winogrande"][index % 2]
        sentence = f"The {first} did not fit beside the {second} near {{place}} {{time}} because the _ was too {cue}."
        return {"sentence": _fill(random_, sentence), "option1": first, "option2": second,
                "answer": "" if split == "test" else str(index % 2 + 1)}

    def fever(split: str, index: int) -> dict:
        # Two evidence rows for each third claim, as in the real set, where claims repeat.
        number = index - 1 if index % 3 == 1 else index
        label = ("REFUTES", "NOT ENOUGH INFO", "SUPPORTS")[number // 3 % 3]
        cue = CUES["fever"][number // 3 % 3]
        claim = _fill(random.Random(f"{split} {number}"),
                      f"{{name}} {cue} {{verb}} the {{adjective}} {{noun}} near {{place}} {{time}}.")
        return {"claim": claim, "label": label, "id": number, "evidence": [["Page", str(index), claim]]}

    def metamath(split: str, index: int) -> dict:
        query = _placed(lambda: _fill(random_, f"{{name}} has {random_.randint(2, 99)} {{noun}}s and buys "
                                               f"{random_.randint(2, 99)} {{time}}. How many are there?"),
                        index % HELD_OUT_EACH == 0)
        first, second = map(int, re.findall(r"\d+", query))
        response = f"We add {first} and {second}, which gives {first + second}. The answer is: {first + second}"
        return {"type": "GSM_AnsAug", "query": query, "original_question": query, "response": response}

    def corpus(name: str, columns: tuple[str, ...] = ("text",)):
        def row(split: str, index: int) -> dict:
            def draw() -> str:
                sentences = [_fill(random_, "the {adjective} {noun} {verb} the {noun} near {place} {time}.")
                             for _ in range(5)]
                return f"{CORPUS_WORDS[name]} {index}: {' '.join(sentences)}"

            text = _placed(draw, index % HELD_OUT_EACH == 0, low=True)
            return {column: text if column == "text" else f"{column} {index}" for column in columns}

        return splits(row, Features({column: Value("string") for column in columns}), train=TRAIN_ROWS)

    def hellaswag(split: str, index: int) -> dict:
        context = [_fill(random_, "{name} {verb} the {adjective} {noun}."), _fill(random_, "the {noun}")]
        endings = [_fill(random_, "{verb} the {noun} near {place} {time}.") for _ in range(4)]
        return {"ind": index, "activity_label": "Cleaning", "ctx_a": context[0], "ctx_b": context[1],
                "ctx": " ".join(context), "endings": endings, "source_id": f"activitynet~v_{index}", "split": split,
                "split_type": "indomain", "label": "" if split == "test" else str(index % 4)}

    def arc(split: str, index: int) -> dict:
        # Some questions of the real set number their answers, and some have three or five.
        letters = "12345" if index % 4 == 1 else "ABCDE"
        letters = list(letters[:{2: 3, 3: 5}.get(index % 8, 4)])
        return {"id": f"Q{index}", "question": _fill(random_, "Which {noun} {verb} the {adjective} {noun} {time}?"),
                "choices": {"text": [_fill(random_, "the {adjective} {noun}") for _ in letters], "label": letters},
                "answerKey": letters[index % len(letters)]}

    def gsm8k(split: str, index: int) -> dict:
        first, second = random_.randint(2, 99), random_.randint(2, 99)
        total = first + second
        return {"question": _fill(random_, f"{{name}} has {first} {{noun}}s and buys {second}. How many are there?"),
                "answer": f"There are {first}+{second}=<<{first}+{second}={total}>>{total}.\n#### {total}"}

    def magicoder(split: str, index: int) -> dict:
        wanted = f"Write a Python function {{verb}}_{{noun}} that adds {index} to a number {{time}}."
        instruction = _placed(lambda: _fill(random_, wanted), index % HELD_OUT_EACH == 0)
        name = instruction.split()[4]
        return {"instruction": instruction,
                "response": f"```python\ndef {name}(number):\n    return number + {index}\n```"}

    def codeparrot(split: str, index: int) -> dict:
        def draw() -> str:
            names = [_fill(random_, "{verb}_{noun}") for _ in range(8)]
            return "".join(f"def {name}(number):\n    return number + {index * part}\n\n\n"
                           for part, name in enumerate(names, start=1))

        content = _placed(draw, index % HELD_OUT_EACH == 0, low=True)
        lines = content.splitlines()
        return {"repo_name": f"stand-in/{index}", "path": f"file_{index}.py", "copies": "1", "size": str(len(content)),
                "content": content, "license": "mit", "hash": index, "line_mean": len(content) / len(lines),
                "line_max": max(map(len, lines)), "alpha_frac": 0.5, "autogenerated": False}

    def open_web_math(split: str, index: int) -> dict:
        text = _placed(lambda: " ".join(
            _fill(random_, f"If the {{noun}} weighs ${part} x$ {{time}}, then $x = {index}/{part}$.")
            for part in range(2, 10)), index % HELD_OUT_EACH == 0, low=True)
        return {"url": f"https://example.org/{index}", "text": text, "date": "2023-03-01 00:00:00",
                "metadata": json.dumps({"extraction_info": {"found_math": True}})}

    def ultrafeedback(split: str, index: int) -> dict:
        # There is no prompt column: both conversations begin with it.
        asked = [{"role": "user", "content": _fill(random_, f"Who {{verb}} the {{noun}} number {split} {index}?")}]
        better, worse = (asked + [{"role": "assistant", "content": _fill(random_, text)}]
                         for text in ("The {adjective} {noun} near {place}.", "{name}."))
        return {"chosen": better, "rejected": worse, "score_chosen": 8.0, "score_rejected": 3.0}

    strings = Value("string")
    turns = List({"role": strings, "content": strings})
    cc_news = ("title", "text", "domain", "date", "description", "url", "image_url")
    return [
        glue("mnli", mnli, ["premise", "hypothesis"], ["entailment", "neutral", "contradiction"],
             "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"),
        glue("qqp", qqp, ["question1", "question2"], ["not_duplicate", "duplicate"], "validation", "test"),
        glue("sst2", sst2, ["sentence"], ["negative", "positive"], "validation", "test"),
        ("lighteval/siqa", "default", splits(siqa, Features(texts), train=TRAIN_ROWS, validation=TEST_ROWS)),
        ("allenai/winogrande", "winogrande_xl", splits(
            winogrande, Features({"sentence": strings, "option1": strings, "option2": strings, "answer": strings}),
            train=TRAIN_ROWS, validation=TEST_ROWS, test=TEST_ROWS)),
        ("copenlu/fever_gold_evidence", "default", splits(
            fever, Features({"claim": strings, "label": strings, "id": Value("int64"),
                             "evidence": List(List(strings))}),
            train=TRAIN_ROWS, validation=TEST_ROWS, test=TEST_ROWS)),
        ("meta-math/MetaMathQA-40K", "default", splits(
            metamath, Features(dict.fromkeys(("type", "query", "original_question", "response"), strings)),
            train=TRAIN_ROWS)),
        ("Rowan/hellaswag", "default", splits(
            hellaswag, Features({"ind": Value("int32")} | dict.fromkeys(("activity_label", "ctx_a", "ctx_b", "ctx"),
                                                                        strings)
                                | {"endings": List(strings)}
                                | dict.fromkeys(("source_id", "split", "split_type", "label"), strings)),
            train=TRAIN_ROWS, validation=TEST_ROWS, test=TEST_ROWS)),
        ("allenai/ai2_arc", "ARC-Challenge", splits(
            arc, Features({"id": strings, "question": strings, "answerKey": strings,
                           "choices": {"text": List(strings), "label": List(strings)}}),
            train=TRAIN_ROWS, validation=TEST_ROWS, test=TEST_ROWS)),
        ("openai/gsm8k", "main", splits(
            gsm8k, Features({"question": strings, "answer": strings}), train=TRAIN_ROWS, test=TEST_ROWS)),
        ("ise-uiuc/Magicoder-Evol-Instruct-110K", "default", splits(
            magicoder, Features({"instruction": strings, "response": strings}), train=TRAIN_ROWS)),
        ("codeparrot/codeparrot-clean-valid", "default", splits(
            codeparrot, Features(dict.fromkeys(("repo_name", "path", "copies", "size", "content", "license"), strings)
                                 | {"hash": Value("int64"), "line_mean": Value("float64"), "line_max": Value("int64"),
                                    "alpha_frac": Value("float64"), "autogenerated": Value("bool")}),
            train=TRAIN_ROWS)),
        ("open-web-math/open-web-math", "default", splits(
            open_web_math, Features(dict.fromkeys(("url", "text", "date", "metadata"), strings)), train=TRAIN_ROWS)),
        ("vblagoje/cc_news", "plain_text", corpus("vblagoje/cc_news", cc_news)),
        ("Skylion007/openwebtext", "plain_text", corpus("Skylion007/openwebtext")),
        ("lucadiliello/STORIES", "default", corpus("lucadiliello/STORIES")),
        ("bookcorpus/bookcorpus", "plain_text", corpus("bookcorpus/bookcorpus")),
        ("trl-lib/ultrafeedback_binarized", "default", splits(
            ultrafeedback, Features({"chosen": turns, "rejected": turns, "score_chosen": Value("float64"),
                                     "score_rejected": Value("float64")}), train=TRAIN_ROWS, test=TEST_ROWS)),
    ]
