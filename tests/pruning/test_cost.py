"""The cost of a step: against the products that torch counts in a real step, and known figures of BERT-base."""

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from homodistil_ds.data.spans import Spans
from homodistil_ds.models.families import plan_for
from homodistil_ds.models.forward import Student, forward
from homodistil_ds.models.width import WidthPlan, Widths
from homodistil_ds.pruning.cost import projection_flops, step_flops, step_parts

ALL = ("logits", "hidden", "attention", "embedding")


def base_plan() -> WidthPlan:
    return plan_for(BertConfig(vocab_size=30522, hidden_size=768, intermediate_size=3072, num_attention_heads=12))


def parts(student: Widths) -> dict[str, float]:
    """MFLOP per token of a step of the published recipe."""
    flops = step_parts(base_plan(), student, sequence_length=128, predicted_share=0.15, reads=ALL, teacher_reads=ALL)
    return {name: value / 1e6 for name, value in flops.items()}


@pytest.mark.parametrize(
    ("student", "body", "head"),
    [
        (Widths(hidden=768, ffn=3072, heads=12, head_size=64), 524, 21.6),
        (Widths(hidden=576, ffn=2304, heads=12, head_size=48), 297, 16.1),
        (Widths(hidden=256, ffn=1024, heads=8, head_size=32), 61, 7.1),
    ],
)
def test_bert_base_costs_what_is_known(student: Widths, body: float, head: float) -> None:
    found = parts(student)
    assert found["teacher"] == pytest.approx(182, rel=0.02)
    assert found["body"] == pytest.approx(body, rel=0.02)
    assert found["head"] == pytest.approx(head, rel=0.02)
    assert found["projections"] * 1e6 == 13 * 6 * 768 * student.hidden


def bert(hidden: int, ffn: int, heads: int) -> BertForMaskedLM:
    config = BertConfig(
        vocab_size=50,
        hidden_size=hidden,
        intermediate_size=ffn,
        num_attention_heads=heads,
        num_hidden_layers=3,
        max_position_embeddings=20,
    )
    return BertForMaskedLM(config)


@pytest.mark.parametrize("reads", [ALL, ("logits",), ("hidden",), ("logits", "embedding")])
@pytest.mark.parametrize("with_teacher", [True, False])
def test_a_step_costs_the_products_that_torch_counts_in_it(reads: tuple[str, ...], with_teacher: bool) -> None:
    teacher, model = bert(24, 40, 4), bert(15, 22, 3)
    teacher.set_attn_implementation("eager")
    plan = plan_for(teacher.config)
    student = Student(model, plan.family, reads, teacher_hidden=24)  # type: ignore[arg-type]
    model.set_attn_implementation("eager")  # the counter does not look into a fused kernel on every machine
    words, positions = torch.randint(50, (2, 12)), torch.tensor([[0, 3, 4], [1, 5, 11]])
    counter = FlopCounterMode(display=False)
    with counter:
        if with_teacher:
            with torch.no_grad():
                forward(teacher, plan.family, words, positions, reads=("logits",))
        own = student(words, positions)
        read = [own.logits, own.embedding, *own.hidden]
        torch.stack([state.sum() for state in read if state is not None]).sum().backward()
    flops = step_flops(
        plan,
        plan_for(model.config).full,
        sequence_length=12,
        predicted_share=3 / 12,
        reads=reads,
        teacher_reads=("logits",) if with_teacher else None,
    )
    assert counter.get_total_flops() == 2 * 12 * flops


def test_what_no_loss_reads_costs_nothing() -> None:
    plan = base_plan()

    def cost(reads: tuple[str, ...]) -> dict[str, float]:
        return dict(
            step_parts(plan, plan.full, sequence_length=128, predicted_share=0.15, reads=reads, teacher_reads=reads)
        )

    assert cost(("attention",))["head"] == cost(("attention",))["projections"] == 0
    assert cost(("attention",))["teacher"] < cost(("logits",))["teacher"]
    hidden, embedding = (projection_flops(plan, plan.full, (read,), 128, 0.15) for read in ("hidden", "embedding"))
    assert hidden == 12 * embedding


@pytest.mark.parametrize("length", [128, 510])
def test_an_encoder_and_a_decoder_cost_what_torch_counts_to_a_hundredth(length: int) -> None:
    """What each of them reads of a row is rounded to whole spans."""
    sizes = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_heads": 4, "num_layers": 3, "num_decoder_layers": 2}
    model = T5ForConditionalGeneration(T5Config(vocab_size=200, **sizes))
    plan, spans = plan_for(model.config), Spans(tuple(range(100, 200)), 1, 0, 0.15)
    student = Student(model, plan.family, ("logits", "hidden"), teacher_hidden=24)
    model.set_attn_implementation("eager")
    batch = spans.batch(np.full((2, length), 7), np.arange(2), 0)
    counter = FlopCounterMode(display=False)
    with counter:
        own = student(*batch.shown)
        assert own.logits is not None
        (own.logits.sum() + torch.stack([state.sum() for state in own.hidden]).sum()).backward()
    flops = step_flops(
        plan,
        plan.full,
        sequence_length=length,
        predicted_share=spans.share(length),
        reads=("logits", "hidden"),
        teacher_reads=None,
    )
    assert 2 * length * flops == pytest.approx(counter.get_total_flops(), rel=0.01)
