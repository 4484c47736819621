"""Named run configurations. Each is a function, so that its text is its documentation."""

from __future__ import annotations

from collections.abc import Callable

from homodistil_ds.config import PruningConfig, RunConfig, StudentConfig


def demo() -> RunConfig:
    """The embedded teacher to half its widths on the built-in corpus: minutes on two cores."""
    return RunConfig(
        learning_rate=2e-3,
        student=StudentConfig(hidden_size=128, intermediate_size=512, num_attention_heads=8),
        pruning=PruningConfig(interval=5),
    )


def correct_teacher() -> RunConfig:
    """Masked-language-model training of a given model, without a teacher: builds or corrects one."""
    return RunConfig(
        method="pretrain",
        output_dir="runs/teacher",
        steps=1000,
        learning_rate=5e-4,
        eval_interval=100,
    )


def _homobert(hidden: int, ffn: int, heads: int, learning_rate: float, name: str) -> RunConfig:
    """The published recipe: 28,000 steps of 4,096 sequences of 128 tokens, an event every 100 steps."""
    return RunConfig(
        teacher="google-bert/bert-base-uncased",
        corpus=("wikimedia/wikipedia:20231101.en",),
        output_dir=f"runs/{name}",
        steps=28_000,
        global_batch_size=4096,
        learning_rate=learning_rate,
        held_out_sequences=4096,
        eval_interval=500,
        log_interval=20,
        save_interval=500,
        student=StudentConfig(hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads),
        pruning=PruningConfig(interval=100),
    )


def homobert_base() -> RunConfig:
    """BERT-base to 576 / 2304, 12 heads of 48: 65.7 M parameters."""
    return _homobert(576, 2304, 12, 3e-4, "homobert_base")


def homobert_small() -> RunConfig:
    """BERT-base to 256 / 1024, 8 heads of 32: 17.4 M parameters."""
    return _homobert(256, 1024, 8, 6e-4, "homobert_small")


def homobert_xsmall() -> RunConfig:
    """BERT-base to 240 / 960, 12 heads of 20: 15.8 M parameters."""
    return _homobert(240, 960, 12, 6e-4, "homobert_xsmall")


def homobert_tiny() -> RunConfig:
    """BERT-base to 224 / 896, 7 heads of 32: 14.2 M parameters."""
    return _homobert(224, 896, 7, 6e-4, "homobert_tiny")


PRESETS: dict[str, Callable[[], RunConfig]] = {
    function.__name__: function
    for function in (demo, correct_teacher, homobert_base, homobert_small, homobert_xsmall, homobert_tiny)
}
