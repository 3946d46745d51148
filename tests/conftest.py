"""What several test files share: threads, a quiet plotting backend, and a base model small enough to train anywhere."""

import os

os.environ["MPLBACKEND"] = "Agg"  # before anything imports matplotlib
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import json
from pathlib import Path

import pytest
import torch

from utils.machine import limit_threads

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


@pytest.fixture(scope="session")
def tiny_decoder(tmp_path_factory) -> Path:
    """A Llama of two layers, 16 wide, with a byte-level BPE learnt from the packaged movie sentences."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from utils.sources.text import rated_sentences

    folder, end = tmp_path_factory.mktemp("decoder") / "tiny", "<|endoftext|>"
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(rated_sentences()["text"].head(1000), vocab_size=400, special_tokens=[end],
                            show_progress=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe._tokenizer, bos_token=end, eos_token=end, pad_token=end,
                                        model_max_length=64)
    torch.manual_seed(0)
    # Matrices this large answer to a few steps; at the usual 0.02 a model this narrow hardly sees its input.
    config = LlamaConfig(vocab_size=len(tokenizer), hidden_size=16, intermediate_size=24, num_hidden_layers=2,
                         num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64,
                         initializer_range=0.2, tie_word_embeddings=True, bos_token_id=0, eos_token_id=0,
                         pad_token_id=0)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
