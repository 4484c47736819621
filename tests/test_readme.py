"""The commands of README.md are taken by the program, and what they train fits the GPUs they are planned for."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig, Qwen3Config, T5Config

from homodistil_ds.command import parse
from homodistil_ds.config import RunConfig
from homodistil_ds.machine import Machine
from homodistil_ds.planning.devices import GPUS
from homodistil_ds.planning.job import PLANNED, job_of
from homodistil_ds.planning.plan import plan_of

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
# Teachers by their hub names: the sizes that they are published with.
PUBLISHED: dict[str, Any] = {
    "google-bert/bert-base-uncased": BertConfig(),
    "google-t5/t5-small": T5Config(decoder_start_token_id=0),
    "Qwen/Qwen3-0.6B": Qwen3Config(
        vocab_size=151936,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=28,
        num_attention_heads=16,
        num_key_value_heads=8,
        head_dim=128,
        max_position_embeddings=40960,
        tie_word_embeddings=True,
    ),
    "meta-llama/Llama-2-7b-hf": LlamaConfig(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32
    ),
}


def commands() -> list[str]:
    """Every start of the training script, without its launcher."""
    blocks = re.findall(r"```bash\n(.*?)```", README, re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    found = [
        line.partition("train.py")[2].partition("#")[0].strip() for line in lines if "homodistil_ds/train.py" in line
    ]
    return [text for text in found if not text.endswith("...")]


def parsed(text: str) -> tuple[RunConfig, Machine]:
    config, machine = parse(shlex.split(text), first=True)
    return config, machine


@pytest.mark.parametrize("text", commands())
def test_a_command_is_taken_and_its_run_fits(text: str, tmp_path: Path) -> None:
    for place, name in enumerate(name for name in PUBLISHED if name in text):
        PUBLISHED[name].save_pretrained(tmp_path / str(place))
        text = text.replace(name, str(tmp_path / str(place)))
    config, machine = parsed(text)
    if config.method not in PLANNED:
        return
    plan = plan_of(job_of(config, machine, nodes=1, ranks_per_node=8, device=GPUS["h100"]))
    assert plan.fits, plan.warnings


def test_there_are_commands() -> None:
    assert len(commands()) > 5
