"""Teachers from 110 M to 70 G parameters: each preset fits the GPUs that the README names, by its DeepSpeed file."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from transformers import BertConfig, LlamaConfig

from homodistil_ds.machine import Machine
from homodistil_ds.models.width import count
from homodistil_ds.planning.devices import GPUS
from homodistil_ds.planning.job import job_of
from homodistil_ds.planning.plan import plan_of
from homodistil_ds.presets import PRESETS
from homodistil_ds.runtime import ds_config

CONFIGS = Path(__file__).resolve().parents[2] / "ds_configs"


def llama(hidden: int, ffn: int, layers: int, heads: int, groups: int | None = None) -> LlamaConfig:
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": ffn, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": heads, "num_key_value_heads": groups or heads}
    return LlamaConfig(vocab_size=32000, max_position_embeddings=4096, tie_word_embeddings=False, **sizes)


@dataclass(frozen=True)
class Size:
    """A teacher's shape and parameters in units of 1e6, and what its run is planned on."""

    preset: str
    config: Any
    millions: int
    file: str
    gpus: int


SIZES = (
    Size("homobert_small", BertConfig(), 110, "zero1.json", 1),
    Size(
        "homobert_large",
        BertConfig(hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16),
        336,
        "zero1.json",
        8,
    ),
    Size("sheared_llama_1b3", llama(2048, 5504, 24, 16), 1345, "zero1_micro8.json", 8),
    Size("llama2_7b", llama(4096, 11008, 32, 32), 6738, "zero3_recompute.json", 8),
    Size("llama2_13b", llama(5120, 13824, 40, 40), 13016, "zero3_recompute.json", 16),
    Size("llama2_70b", llama(8192, 28672, 80, 64, 8), 68977, "zero3_recompute.json", 64),
)


@pytest.mark.parametrize("size", SIZES, ids=lambda size: size.preset)
def test_a_preset_fits_its_gpus(size: Size, tmp_path: Path) -> None:
    size.config.save_pretrained(tmp_path)
    config = replace(PRESETS[size.preset](), teacher=str(tmp_path))
    machine = Machine(ds_config=ds_config.read(CONFIGS / size.file))
    nodes, here = max(1, size.gpus // 8), min(size.gpus, 8)
    plan = plan_of(job_of(config, machine, nodes=nodes, ranks_per_node=here, device=GPUS["h100"]))
    assert round(count(plan.job.plan, plan.job.plan.full).with_head / 1e6) == pytest.approx(size.millions, rel=0.01)
    assert plan.fits, plan.warnings
    assert len(plan.phases) == 9
    assert 0.1 < plan.phases[-1].pace.utilisation < 0.65
