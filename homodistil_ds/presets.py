"""Named run configurations. Each is a function, so that its text is its documentation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from homodistil_ds.config import LossConfig, OptimizerConfig, PruningConfig, RunConfig, StudentConfig
from homodistil_ds.task_config import TaskConfig, TaskLossConfig


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


def homobert_large() -> RunConfig:
    """BERT-large (340 M) to 512 / 2048, 8 heads of 64, with all of its 24 layers."""
    run = _homobert(512, 2048, 8, 3e-4, "homobert_large")
    return replace(run, teacher="google-bert/bert-large-uncased")


NO_LOSS: dict[str, Any] = {name: 0.0 for name in ("mlm", "kl", "hidden", "attention", "embedding")}


def _baseline(name: str, loss: LossConfig, student: StudentConfig, optimizer: OptimizerConfig) -> RunConfig:
    """The published recipe of HomoDistil with another objective and start."""
    return replace(homobert_base(), output_dir=f"runs/{name}", learning_rate=5e-4, loss=loss, student=student,
                   optimizer=optimizer, cuts=0)  # fmt: skip


def distilbert() -> RunConfig:
    """DistilBERT (B2): half of BERT-base's layers at its width, 5 KL at temperature 2, 2 MLM, 1 cosine.

    The layers are those of its authors' script: 0, 2, 4, 7, 9 and 11 of 12.
    """
    loss = LossConfig(**{**NO_LOSS, "mlm": 2.0, "kl": 5.0, "cosine": 1.0}, temperature=2.0)
    adam = OptimizerConfig(beta2=0.98, warmup=0.05)
    return _baseline("distilbert", loss, StudentConfig(num_hidden_layers=6, layers="spread"), adam)


def tinybert() -> RunConfig:
    """TinyBERT's general stage (B3): 4 random layers of 312, attention scores and states against every third layer."""
    loss = LossConfig(**{**NO_LOSS, "hidden": 1.0, "embedding": 1.0, "scores": 1.0})
    return _baseline("tinybert", loss, _random(312, 1200, 4), OptimizerConfig())


def minilm() -> RunConfig:
    """MiniLM (B4): 6 random layers of 384, the last layer's attention and value relations."""
    loss = LossConfig(**{**NO_LOSS, "attention_kl": 1.0, "value_relation": 1.0})
    return _baseline("minilm", loss, _random(384, 1536, 6), OptimizerConfig())


def minilmv2() -> RunConfig:
    """MiniLMv2 (B5): 6 random layers of 384, the last layer's relations of queries, keys and values in 48 heads."""
    loss = LossConfig(**{**NO_LOSS, "relation": 1.0}, relation_heads=48)
    return _baseline("minilmv2", loss, _random(384, 1536, 6), OptimizerConfig())


def plain_kd() -> RunConfig:
    """Logits alone (B1): half of BERT-base's layers, MLM and KL."""
    loss = LossConfig(**{**NO_LOSS, "mlm": 1.0, "kl": 1.0})
    return _baseline("plain_kd", loss, StudentConfig(num_hidden_layers=6), OptimizerConfig())


def logit() -> RunConfig:
    """A decoder from its logits alone (KL), what works best on decoders that keep their depth.

    The --student sizes are the user's; 20,000 steps of 256 sequences of 2,048 tokens are 10 G tokens.
    """
    return RunConfig(
        output_dir="runs/logit",
        steps=20_000,
        global_batch_size=256,
        sequence_length=2048,
        learning_rate=1e-4,
        eval_interval=500,
        save_interval=500,
        loss=LossConfig(**{**NO_LOSS, "kl": 1.0}),
        pruning=PruningConfig(interval=50),
        optimizer=OptimizerConfig(beta2=0.95, warmup=0.02),
    )


def homodistil() -> RunConfig:
    """HomoDistil's states and embeddings beside the logits, for decoders: without attention maps, which no fused kernel
    returns."""
    loss = LossConfig(**{**NO_LOSS, "kl": 1.0, "hidden": 1.0, "embedding": 1.0})
    return replace(logit(), output_dir="runs/homodistil", loss=loss)


def _decoder(teacher: str, hidden: int, ffn: int, heads: int, name: str) -> RunConfig:
    student = StudentConfig(hidden_size=hidden, intermediate_size=ffn, num_attention_heads=heads)
    corpus = ("HuggingFaceFW/fineweb-edu:sample-10BT",)
    return replace(logit(), teacher=teacher, corpus=corpus, output_dir=f"runs/{name}", student=student)


def sheared_llama_1b3() -> RunConfig:
    """Sheared-LLaMA-1.3B to half its widths."""
    return _decoder("princeton-nlp/Sheared-LLaMA-1.3B", 1024, 2752, 8, "sheared_llama_1b3")


def llama2_7b() -> RunConfig:
    """Llama-2-7B to 1.4 G parameters at its depth."""
    return _decoder("meta-llama/Llama-2-7b-hf", 1792, 4864, 14, "llama2_7b")


def llama2_13b() -> RunConfig:
    """Llama-2-13B to half its widths, 3.3 G parameters."""
    return _decoder("meta-llama/Llama-2-13b-hf", 2560, 6912, 20, "llama2_13b")


def llama2_70b() -> RunConfig:
    """Llama-2-70B to half its widths, 17 G parameters; four of eight groups of heads stay."""
    return _decoder("meta-llama/Llama-2-70b-hf", 4096, 14336, 32, "llama2_70b")


def _random(hidden: int, ffn: int, layers: int) -> StudentConfig:
    return StudentConfig(
        init="random", hidden_size=hidden, intermediate_size=ffn, num_attention_heads=12, num_hidden_layers=layers
    )


def masks_at_the_end() -> RunConfig:
    """As DeepSpeed's own masks do it: by magnitude, at once, compacted after training; homobert_small's size."""
    pruning = PruningConfig(start=0.1, end=0.1, criterion="magnitude", interval=100)
    return replace(homobert_small(), output_dir="runs/masks_at_the_end", pruning=pruning, cuts=0)


def one_shot() -> RunConfig:
    """All of homobert_small's pruning after the warm-up's first steps, the same losses after it."""
    pruning = PruningConfig(start=0.03, end=0.03, interval=100)
    return replace(homobert_small(), output_dir="runs/one_shot", pruning=pruning)


def magnitude() -> RunConfig:
    """Gradual magnitude pruning: homobert_small, but what leaves are the neurons of the smallest weights."""
    small = homobert_small()
    return replace(small, output_dir="runs/magnitude", pruning=replace(small.pruning, criterion="magnitude"))


def random_start() -> RunConfig:
    """homobert_small's shape from random weights, under its losses: what inheriting the teacher's is worth."""
    small = homobert_small()
    return replace(small, output_dir="runs/random_start", student=replace(small.student, init="random"), cuts=0)


def finetune() -> RunConfig:
    """A model learns a task of GLUE: --model and --task.name."""
    return _on_task("finetune", "finetune", TaskLossConfig())


def mixkd() -> RunConfig:
    """MixKD (X5): the task's loss, student mixup and teacher mixup, squared error of logits, Beta(0.4, 0.4)."""
    return _on_task("mixkd", "mixkd", TaskLossConfig(mixed_task=1.0, mixed_kd=1.0))


def task_kd() -> RunConfig:
    """Plain distillation of a task: what mixkd is without mixing."""
    return _on_task("task_kd", "mixkd", TaskLossConfig(kd=1.0))


def pkd() -> RunConfig:
    """PKD (B6): labels, logits at temperature 10 and the [CLS] states of all layers but the last (PKD-skip).

    Its students start as the teacher's first layers: homodistil with --student.layers first.
    """
    loss = TaskLossConfig(task=0.5, kd=0.5, patience=100.0, distance="kl", temperature=10.0)
    return _on_task("pkd", "mixkd", loss)


def minidisc() -> RunConfig:
    """MiniDisc (M1-M4): seven nested students of a teacher that knows the task; one teaches the smaller ones."""
    loss = TaskLossConfig(task=0.0, kd=0.5, states=0.5, distance="ce")
    family = (0.5, 0.4, 0.3, 0.2, 0.15, 0.1, 0.05)
    run = _on_task("minidisc", "minidisc", loss, family)
    return replace(run, assistant="auto", learning_rate=3e-5, eval_interval=100)


def _on_task(
    name: str, method: Literal["finetune", "mixkd", "minidisc"], loss: TaskLossConfig, family: tuple[float, ...] = ()
) -> RunConfig:
    return RunConfig(
        method=method,
        output_dir=f"runs/{name}",
        steps=0,
        learning_rate=5e-5,
        eval_interval=0,
        task=TaskConfig(),
        task_loss=loss,
        family=family,
    )


_FUNCTIONS = (
    *(demo, correct_teacher, homobert_base, homobert_small, homobert_xsmall, homobert_tiny, homobert_large),
    *(distilbert, tinybert, minilm, minilmv2, plain_kd, one_shot, magnitude, masks_at_the_end),
    *(random_start, logit, homodistil, sheared_llama_1b3, llama2_7b, llama2_13b, llama2_70b),
    *(finetune, mixkd, task_kd, pkd, minidisc),
)
PRESETS: dict[str, Callable[[], RunConfig]] = {function.__name__: function for function in _FUNCTIONS}
