"""What rows of a tokenizer begin and end with, and what stands between documents."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertTokenizerFast, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from homodistil_ds.data.tokens import Tokens
from homodistil_ds.errors import HomodistilError

BEGIN, END = 1, 2
VOCABULARY = {"?": 0, "<s>": BEGIN, "</s>": END, "a": 3, "b": 4}


def decoders(begins: bool, **special: str) -> PreTrainedTokenizerBase:
    """Word pieces as a decoder has them, whose texts begin with <s> or with their first word."""
    words = Tokenizer(WordLevel(VOCABULARY, unk_token="?"))
    words.pre_tokenizer = Whitespace()
    if begins:
        words.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="?", **special)


@pytest.mark.parametrize("begins", [True, False])
def test_a_decoders_row_begins_as_its_texts_do_and_ends_with_text(begins: bool) -> None:
    tokens = Tokens(decoders(begins, bos_token="<s>", eos_token="</s>"))
    assert (tokens.front, tokens.back, tokens.end) == ((BEGIN,) if begins else (), (), END)
    assert tokens.inner(16) == (15 if begins else 16)
    assert list(tokens.ids(["a b", "b"])) == [[3, 4], [4]]


def test_an_encoders_row_lies_between_its_two_tokens() -> None:
    tokens = Tokens(BertTokenizerFast(vocab={"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4, "a": 5}))
    assert (tokens.front, tokens.back, tokens.end, tokens.inner(16)) == ((2,), (3,), 3, 14)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(HomodistilError) as caught:
        Tokens(decoders(False))
    assert caught.value.error_id == "DATA-NO-SPECIAL-TOKENS"
