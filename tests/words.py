"""Text whose every word is one token, so that tests can say which tokens must come out."""

import functools

from transformers import BertTokenizerFast

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
LENGTH = 16


@functools.cache
def words_tokenizer() -> BertTokenizerFast:
    words = SPECIAL + [f"w{n}" for n in range(4000)]
    return BertTokenizerFast(vocab={word: n for n, word in enumerate(words)})


def documents() -> list[str]:
    """400 documents, no word of which occurs in two; every eighth is too short."""
    return [" ".join(f"w{10 * n + k}" for k in range(10 if n % 8 else 7)) for n in range(400)]
