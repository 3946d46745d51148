"""What several test files share: threads, a quiet plotting backend, and a base model small enough to train anywhere."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
from pathlib import Path

import pytest
import torch

from utils.training.device import limit_threads

limit_threads()


@pytest.fixture(autouse=True)
def _no_variables_of_the_shell(monkeypatch):
    """A reader's own settings must not decide how a test ends; the cache is theirs to place."""
    for name in ("LORA_COURSE_FIGURES", "LORA_COURSE_REFERENCE", "LORA_COURSE_SKIP_HARDWARE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    """A BERT of two layers, 32 wide, with a WordPiece vocabulary learnt from the packaged movie sentences."""
    from tokenizers import BertWordPieceTokenizer
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    from utils.sources.text import rated_sentences

    folder = tmp_path_factory.mktemp("base") / "tiny"
    words = BertWordPieceTokenizer(lowercase=True)
    words.train_from_iterator(rated_sentences()["text"].head(2000), vocab_size=400, show_progress=False)
    torch.manual_seed(0)
    config = BertConfig(vocab_size=words.get_vocab_size(), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
                        intermediate_size=64, max_position_embeddings=64)
    BertForMaskedLM(config).save_pretrained(folder)
    BertTokenizerFast(tokenizer_object=words._tokenizer, model_max_length=64).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "bert"
    return folder
