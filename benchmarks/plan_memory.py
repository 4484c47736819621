"""Is the plan true? Peaks and times of real runs beside those that were planned, over shapes, stages and ranks.

    python benchmarks/plan_memory.py --output_dir runs/plan_memory                     # every case, some 10 minutes
    python benchmarks/plan_memory.py --output_dir runs/plan_memory --only bert-2-1 llama-3-2
    python benchmarks/plan_memory.py --output_dir runs/plan_memory --only bert-base-1-2 bert-large-1-2
    python benchmarks/plan_memory.py --output_dir runs/plan_memory --only llama-1b3-3-2-offload   # 1.3 G, 20 steps

A case is a model, a ZeRO stage and a number of ranks. Each run is of its own processes: some steps with one cut, on a
teacher of random weights.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from homodistil_ds.models.loading import folder_of

BESIDE = 0.10  # as near as a plan must be to what was measured
WORKER = Path(__file__).resolve().parent / "plan_memory_run.py"


@dataclass(frozen=True, kw_only=True)
class Case:
    """`model` is a key of MODELS; bf16 but at stage 0, where DeepSpeed trains in float32 alone."""

    model: str
    stage: int
    ranks: int
    micro_batch: int = 8
    sequence_length: int = 64
    steps: int = 6
    offload: bool = False
    zero: Mapping[str, int] = field(default_factory=dict)
    student: Mapping[str, int] = field(default_factory=lambda: SMALL)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.stage}-{self.ranks}{'-offload' * self.offload}"

    def machine(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self.stage, **self.zero}
        if self.offload:
            zero["offload_optimizer"] = {"device": "cpu"}
        return {
            "train_micro_batch_size_per_gpu": self.micro_batch,
            "zero_optimization": zero,
            "bf16": {"enabled": self.stage > 0},
            "gradient_clipping": 1.0,
        }


SMALL = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6}
# The sizes of presets, which take their time.
BERT_BASE = Case(
    model="bert-base",
    stage=1,
    ranks=2,
    student={"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8},
)
BERT_LARGE = Case(
    model="bert-large",
    stage=1,
    ranks=2,
    student={"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8},
)
# Of Sheared-LLaMA-1.3B the student's states of all 24 layers alone would take more than 24 GiB.
LLAMA_1B3 = Case(
    model="llama-1b3",
    stage=3,
    ranks=2,
    micro_batch=1,
    steps=20,
    offload=True,
    zero={
        "sub_group_size": 100_000_000,
        "reduce_bucket_size": 50_000_000,
        "stage3_prefetch_bucket_size": 50_000_000,
        "stage3_max_live_parameters": 100_000_000,
        "stage3_max_reuse_distance": 0,
    },
    student={"hidden_size": 1024, "intermediate_size": 2752, "num_attention_heads": 8, "num_hidden_layers": 8},
)
NAMED = (BERT_BASE, BERT_LARGE, LLAMA_1B3)  # not run unless they are asked for
CASES = (
    *(Case(model="bert", stage=stage, ranks=ranks) for stage in range(4) for ranks in (1, 2)),
    Case(model="bert-long", stage=2, ranks=1, micro_batch=4, sequence_length=256),
    Case(model="bert-relations", stage=2, ranks=1, micro_batch=4, sequence_length=256),
    Case(model="t5", stage=2, ranks=1),
    *(Case(model="llama", stage=stage, ranks=ranks) for stage, ranks in ((1, 2), (2, 1), (3, 2))),
    *(Case(model="llama", stage=stage, ranks=2, offload=True) for stage in (1, 2, 3)),
)


def bert(vocabulary: int) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(vocab_size=vocabulary, num_hidden_layers=6))


def bert_base(vocabulary: int) -> BertForMaskedLM:
    """Its vocabulary is BERT's own size; texts use the first pieces of it."""
    return BertForMaskedLM(BertConfig())


def bert_large(vocabulary: int) -> BertForMaskedLM:
    sizes = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    return BertForMaskedLM(BertConfig(**sizes))


def llama(vocabulary: int) -> LlamaForCausalLM:
    sizes = {"hidden_size": 768, "intermediate_size": 2048, "num_attention_heads": 12, "num_hidden_layers": 8}
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, tie_word_embeddings=False, **sizes))


def t5(vocabulary: int) -> T5ForConditionalGeneration:
    sizes = {"d_model": 768, "d_ff": 2048, "num_heads": 12, "num_layers": 4}
    return T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, decoder_start_token_id=0, **sizes))


def llama_1b3(vocabulary: int) -> LlamaForCausalLM:
    """Its vocabulary is Llama's own size; texts use the first pieces of it."""
    sizes = {"hidden_size": 2048, "intermediate_size": 5504, "num_attention_heads": 16, "num_hidden_layers": 24}
    config = LlamaConfig(vocab_size=32_000, tie_word_embeddings=False, dtype=torch.bfloat16, **sizes)
    return AutoModelForCausalLM.from_config(config)


# Name -> the model and the preset that distils it.
MODELS = {
    "bert": (bert, "demo"),
    "bert-long": (bert, "demo"),
    "bert-base": (bert_base, "homobert_small"),
    "bert-large": (bert_large, "homobert_large"),
    "bert-relations": (bert, "minilmv2"),
    "llama": (llama, "homodistil"),
    "t5": (t5, "homodistil"),
    "llama-1b3": (llama_1b3, "logit"),
}


TEACHERS = {"bert-long": "bert", "bert-relations": "bert"}  # of the same folder


def tokenizer_for(name: str) -> PreTrainedTokenizerBase:
    """The embedded teacher's; for T5 its pieces with T5's special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(folder_of("builtin"))
    if name != "t5":
        return tokenizer
    named = {"pad_token": "[PAD]", "eos_token": "[SEP]", "unk_token": "[UNK]"}
    sentinels = [f"<extra_id_{number}>" for number in range(100)]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, extra_special_tokens=sentinels, **named
    )


def write_teacher(name: str, folder: Path) -> Path:
    if not (folder / "config.json").exists():
        tokenizer = tokenizer_for(name)
        torch.manual_seed(0)
        model = MODELS[name][0](len(tokenizer))
        tokenizer.add_tokens([f"[unused{number}]" for number in range(len(tokenizer), model.config.vocab_size)])
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def measure(case: Case, folder: Path) -> dict[str, Any]:
    """Planned and measured bytes of one run, in processes of its own."""
    teacher = write_teacher(case.model, folder / "teachers" / TEACHERS.get(case.model, case.model))
    out = folder / case.name
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    (out / "machine.json").write_text(json.dumps(case.machine()), encoding="utf-8")
    flags = {
        "preset": MODELS[case.model][1],
        "teacher": teacher,
        "corpus": "builtin",
        "deepspeed_config": out / "machine.json",
        "teacher_placement": "zero3" if case.stage == 3 and case.ranks > 1 else "replicated",
        "output_dir": out / "run",
        "steps": case.steps,
        "global_batch_size": case.ranks * case.micro_batch,
        "sequence_length": case.sequence_length,
        "held_out_sequences": 8,
        "eval_interval": 0,
        "save_interval": 0,
        "cuts": 1,
        "pruning.interval": 1,
        "pruning.start": 0.4,
        "pruning.end": 0.7,
        **{f"student.{name}": size for name, size in case.student.items()},
    }
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(case.ranks)]
    command = [*launcher, str(WORKER), str(out / "result.json")]
    command += [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    environment = {name: value for name, value in os.environ.items() if name not in ("RANK", "WORLD_SIZE")}
    environment |= {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    with (out / "log.txt").open("w", encoding="utf-8") as log:
        subprocess.run(command, env=environment, stdout=log, stderr=log, check=True)
    found = json.loads((out / "result.json").read_text(encoding="utf-8"))
    return {"case": case.name, **found, "off_by": found["planned"] / found["measured"] - 1}


def line(row: dict[str, Any]) -> str:
    planned, measured, framework = (mib(row[name]) for name in ("planned", "measured", "framework"))
    around = [f"{mib(row[name]['planned'])} / {mib(row[name]['measured'])}" for name in ("start", "end")]
    times = [f"{step['planned']:.2f} / {step['measured']:.2f}" for step in row["step_seconds"]]
    cells = [row["case"], framework, planned, measured, f"{row['off_by']:+.1%}", *around, ", ".join(times)]
    return f"| {' | '.join(cells)} |"


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


def main() -> None:
    flags = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    flags.add_argument("--output_dir", type=Path, required=True)
    flags.add_argument("--only", nargs="+", choices=[case.name for case in (*CASES, *NAMED)])
    given = flags.parse_args()
    heads = "model-stage-ranks | process without a model, MiB | planned | measured | off by"
    heads += " | start, planned / measured | end | s per step between cuts"
    print(f"| {heads} |\n|:--|--:|--:|--:|--:|--:|--:|:--|")
    rows = []
    chosen = [case for case in (*CASES, *NAMED) if case.name in given.only] if given.only else CASES
    for case in chosen:
        rows.append(measure(case, given.output_dir))
        print(line(rows[-1]), flush=True)
    (given.output_dir / "plan_memory.json").write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
    wrong = [row["case"] for row in rows if abs(row["off_by"]) > BESIDE]
    if wrong:
        sys.exit(f"further than {BESIDE:.0%} from what was measured: {', '.join(wrong)}")


if __name__ == "__main__":
    main()
