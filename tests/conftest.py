"""A tiny BERT with a word-level vocabulary and a tiny corpus, made here: quick, and nothing is downloaded."""

import os
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

import pytest
from tiny_run import write_corpus, write_teacher


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a BERT: 2 layers, hidden 32, 4 heads of 8, ffn 64, 185 words, random weights large enough to matter."""
    return write_teacher(tmp_path_factory.mktemp("teacher"))


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .txt file of 400 documents; each word mostly decides the next one, so that there is something to learn."""
    return write_corpus(tmp_path_factory.mktemp("corpus") / "words.txt")
