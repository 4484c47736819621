"""A tiny BERT with a word-level vocabulary and a tiny corpus, made here: quick, and nothing is downloaded."""

import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [first + vowel + last for first in "bdfgklmnprst" for vowel in "aeiou" for last in "nst"]


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT: 2 layers, hidden 32, 4 heads of 8, ffn 64, 185 words, random weights large enough to matter."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(SPECIAL) + len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    model = BertForMaskedLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    vocabulary = {word: place for place, word in enumerate([*SPECIAL, *WORDS])}
    BertTokenizerFast(vocab=vocabulary, model_max_length=64).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .txt file of 400 documents; each word mostly decides the next one, so that there is something to learn."""
    generator = np.random.default_rng(0)
    documents = []
    for _ in range(400):
        place = int(generator.integers(len(WORDS)))
        words = []
        for _ in range(60):
            words.append(WORDS[place])
            place = (7 * place + int(generator.integers(3))) % len(WORDS)
        documents.append(" ".join(words))
    path = tmp_path_factory.mktemp("corpus") / "words.txt"
    path.write_text("\n\n".join(documents), encoding="utf-8")
    return path
