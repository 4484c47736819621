"""Plans against what torch counts, what a run will do, and figures that are known."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from family_models import MASKED, SIZES, VARIANTS, tiny_model
from torch.utils.flop_counter import FlopCounterMode
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedModel, T5Config

from homodistil_ds.config import LossConfig, PruningConfig, RunConfig, StudentConfig
from homodistil_ds.distillation import vocabulary
from homodistil_ds.distillation.attention_maps import SHORTEST
from homodistil_ds.distillation.losses import Inputs
from homodistil_ds.errors import HomodistilError
from homodistil_ds.machine import Machine
from homodistil_ds.models.forward import Student, Teacher, headed
from homodistil_ds.planning import page
from homodistil_ds.planning.around import check_room, host_bytes_around
from homodistil_ds.planning.devices import GPUS, REACHED, Device, device_named, gpu_called
from homodistil_ds.planning.job import Job, entries, job_of
from homodistil_ds.planning.memory import footprint, job_at, shape_of
from homodistil_ds.planning.plan import Plan, as_json, plan_of
from homodistil_ds.planning.speed import pace, per_token, useful_flops
from homodistil_ds.planning.traffic import step_traffic, wire_traffic
from homodistil_ds.presets import PRESETS
from homodistil_ds.pruning.cost import body_flops

GIB = 2**30
H100 = GPUS["h100"]


def machine(stage: int, micro: int = 16, **more: Any) -> dict[str, Any]:
    zero = {"stage": stage} | more
    return {"train_micro_batch_size_per_gpu": micro, "zero_optimization": zero, "bf16": {"enabled": stage > 0}}


def llama_7b(folder: Path) -> RunConfig:
    sizes = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32}
    LlamaConfig(vocab_size=32000, tie_word_embeddings=False, max_position_embeddings=4096, **sizes).save_pretrained(
        folder
    )
    student = StudentConfig(hidden_size=1792, intermediate_size=4864, num_attention_heads=14)
    return replace(PRESETS["logit"](), teacher=str(folder), student=student)


def bert_base(folder: Path) -> RunConfig:
    BertConfig().save_pretrained(folder)
    return replace(PRESETS["homobert_small"](), teacher=str(folder))


def job(
    config: RunConfig, values: dict[str, Any], ranks: int = 8, device: Device = H100, placement: str = "auto"
) -> Job:
    stated = Machine(ds_config=values, teacher_placement=placement)
    return job_of(config, stated, nodes=max(1, ranks // 8), ranks_per_node=min(ranks, 8), device=device)


COUNTED = [name for name in VARIANTS if name not in ("t5", "t5-1.1")]


def flops_of_a_step(model: PreTrainedModel, other: PreTrainedModel, config: RunConfig) -> tuple[float, float]:
    """Planned, and counted by torch in a step with its losses; `other` becomes a student of the teacher's size."""
    model.config.save_pretrained(config.teacher)
    planned = job(config, machine(2, micro=8), ranks=1)
    objective, family, full = planned.objective, planned.plan.family, planned.plan.full
    teacher = Teacher(model, family, objective.teacher_reads())
    student = Student(
        other.requires_grad_(True), family, objective.student_reads(), teacher_hidden=planned.plan.full.hidden
    )
    for each in (teacher.model, student.model):
        each.set_attn_implementation("eager")  # the counter does not look into every fused kernel
    ids = torch.randint(5, 180, (8, config.sequence_length))
    positions = torch.arange(round(config.sequence_length * planned.predicted_share)).expand(8, -1)
    heads = [torch.arange(full.heads)] * planned.plan.layers
    counter = FlopCounterMode(display=False)
    with counter:
        with torch.no_grad():
            taught = headed(teacher, teacher(ids, positions, reads=objective.teacher_reads()))
        own, labels = headed(student, student(ids, positions)), ids[:, : positions.shape[1]]
        total, _ = objective(
            Inputs(
                student=own,
                teacher=taught,
                labels=labels,
                student_heads=heads,
                head_origins=heads,
                **objective.settings,
            )
        )
        total.backward()
    return planned.tokens * planned.flops(planned.student_plan.full), counter.get_total_flops()


@pytest.mark.parametrize("variant", COUNTED)
def test_planned_flops_are_those_that_torch_counts_in_a_step_with_its_losses(variant: str, tmp_path: Path) -> None:
    preset = PRESETS["demo" if variant in MASKED else "homodistil"]()
    changed = {"teacher": str(tmp_path), "student": StudentConfig(), "global_batch_size": 8, "sequence_length": 32}
    planned, counted = flops_of_a_step(tiny_model(variant), tiny_model(variant), replace(preset, **changed))
    assert planned == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(("variant", "preset"), [("bert", "demo"), ("gpt2", "homodistil"), ("llama", "logit")])
def test_products_that_are_made_twice_to_save_memory_are_counted(
    variant: str, preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits in parts, and attention maps in tiles."""
    monkeypatch.setattr(vocabulary, "MOST_ENTRIES", 20_000)
    sizes = SIZES | {"position": SHORTEST}
    loss = replace(PRESETS[preset]().loss, attention=float(variant != "llama"))
    config = replace(
        PRESETS[preset](),
        teacher=str(tmp_path),
        student=StudentConfig(),
        global_batch_size=8,
        sequence_length=SHORTEST,
        loss=loss,
    )
    planned, counted = flops_of_a_step(tiny_model(variant, sizes), tiny_model(variant, sizes), config)
    assert planned == pytest.approx(counted, rel=0.01)


def test_phases_cover_the_run_and_shrink(tmp_path: Path) -> None:
    plan = plan_of(job(bert_base(tmp_path), machine(1, micro=64)))
    assert plan.phases[0].first == 1
    assert plan.phases[-1].last == 28_000
    assert all(one.last + 1 == two.first for one, two in zip(plan.phases, plan.phases[1:], strict=False))
    assert len(plan.phases) == 9
    peaks, seconds = (
        [f(phase) for phase in plan.phases] for f in (lambda p: p.footprint.peak, lambda p: p.pace.seconds)
    )
    assert peaks == sorted(peaks, reverse=True)
    assert seconds == sorted(seconds, reverse=True)
    assert plan.tokens == 28_000 * 4096 * 128
    assert plan.fits
    # Masked throughout it would cost some 2.1 times as much (performance of the schedule, K = 8, t_f = 0.7).
    whole = plan.tokens * plan.job.flops(plan.job.plan.full)
    assert whole / plan.flops == pytest.approx(2.14, rel=0.05)


def test_bytes_of_weights_masters_and_moments_are_exact(tmp_path: Path) -> None:
    config = llama_7b(tmp_path)
    for stage, weights, states in ((1, 2, 12 / 8), (2, 2, 12 / 8), (3, 2 / 8, 12 / 8)):
        own = job(config, machine(stage, stage3_max_live_parameters=0), placement="replicated")
        items = footprint(own, own.student_plan.full).items
        size = entries(own.trained(own.student_plan.full))
        assert size == 6_738_415_616
        assert items["teacher"] == 2 * size
        assert items["student"] == pytest.approx(weights * size, rel=1e-6)
        assert items["optimizer"] == pytest.approx(states * size, rel=1e-6)
    zero3 = job(config, machine(3), placement="zero3")
    assert footprint(zero3, zero3.student_plan.full).items["teacher"] == 2 * size // 8 + 4 * 32000 * 4096
    offloaded = job(config, machine(2, offload_optimizer={"device": "cpu"}), placement="replicated")
    found = footprint(offloaded, offloaded.student_plan.full)
    assert found.items["optimizer"] == 0
    assert found.host == 16 * size // 8


def test_weights_in_host_memory_are_none_of_the_gpus(tmp_path: Path) -> None:
    config, host = llama_7b(tmp_path), {"device": "cpu"}
    whole = job(config, machine(3, offload_optimizer=host), placement="zero3")
    away = job(config, machine(3, offload_optimizer=host, offload_param=host), placement="zero3")
    kept, left = (footprint(own, own.student_plan.full) for own in (whole, away))
    own = 2 * 6_738_415_616 // 8
    assert kept.items["student"] - left.items["student"] == own
    assert left.host - kept.host == own


def test_what_is_offloaded_where_there_is_only_host_memory_stays_in_it(tmp_path: Path) -> None:
    config, cpu = llama_7b(tmp_path), replace(H100, keeps_freed=True)
    for stage in (2, 3):
        own, offloaded = (
            job(config, machine(stage, **more), placement="replicated", device=cpu)
            for more in ({}, {"offload_optimizer": {"device": "cpu"}})
        )
        here, there = (footprint(each, each.student_plan.full).items for each in (own, offloaded))
        assert there["gradients"] - here["gradients"] == 4 * 6_738_415_616 // 8
        assert there["optimizer"] == here["optimizer"] > 0
        assert there["optimizer step"] == 0 < here["optimizer step"]


def test_products_have_the_rate_of_their_precision(tmp_path: Path) -> None:
    config = llama_7b(tmp_path)

    def plan(device: Device, **precision: Any) -> Plan:
        values = {**machine(1), "bf16": {"enabled": False}, **precision}
        return plan_of(job(config, values, device=device))

    half, single = plan(H100, bf16={"enabled": True}), plan(H100)
    assert single.seconds > 5 * half.seconds
    assert any("in float32, at 7% of the rate" in warning for warning in single.warnings)
    assert not any("float32" in warning for warning in half.warnings)
    old = [plan(GPUS["v100"], **{name: {"enabled": True}}) for name in ("bf16", "fp16")]
    assert old[0].seconds > 3 * old[1].seconds
    assert any("fp16 is for this GPU" in warning for warning in old[0].warnings)


def test_choices_do_without_what_costs_time_where_that_fits(tmp_path: Path) -> None:
    config, values = llama_7b(tmp_path), machine(3, micro=4, offload_optimizer={"device": "cpu"})
    found = plan_of(job(config, values | {"activation_checkpointing": {}})).choices
    assert (found[0].recomputes, found[0].offloads, found[0].fits) == (False, False, True)
    assert any(choice.recomputes and choice.offloads for choice in found)
    assert all(choice.fits for choice in found if not choice.recomputes)


def test_host_memory_that_is_known_must_be_enough(tmp_path: Path) -> None:
    config, values = llama_7b(tmp_path), machine(3, micro=4, offload_optimizer={"device": "cpu"})
    plans = [plan_of(job(config, values, device=replace(H100, host_memory=size * GIB))) for size in (0, 2000, 64)]
    assert plans[0].host_peak > 64 * GIB
    assert [plan.fits for plan in plans] == [True, True, False]
    assert "of 64.0 GiB of a node's host memory" in plans[2].warnings[0]
    check_room(plans[1].job, 79 * GIB)
    pieces = job(config, values, device=replace(H100, host_memory=64 * GIB), placement="zero3")
    with pytest.raises(HomodistilError, match="keep Adam, weights or the teacher there") as caught:
        check_room(pieces, 79 * GIB)
    assert caught.value.remedy.startswith("Offload less")
    small = job(config, machine(3, micro=4), device=replace(H100, host_memory=64 * GIB), placement="replicated")
    with pytest.raises(HomodistilError, match="whole and in float32") as caught:
        check_room(small, 79 * GIB)
    assert caught.value.remedy.startswith("Use --teacher_placement zero3")


def test_ranks_on_cpus_share_the_cores_that_they_have() -> None:
    cores, threads = os.cpu_count() or 1, torch.get_num_threads()
    few, many = device_named("cpu", 1), device_named("cpu", 64 * cores)
    assert many.product < few.product / 8
    assert many.memory < few.memory
    assert threads <= cores


def test_of_two_stacks_each_counts_with_what_it_reads(tmp_path: Path) -> None:
    """t5-small: 128 tokens make 116 ids of the encoder (115.5 by the formula) and 26 of the decoder."""
    T5Config(decoder_start_token_id=0).save_pretrained(tmp_path)
    planned = job(replace(PRESETS["homodistil"](), teacher=str(tmp_path), sequence_length=128), machine(2))
    assert planned.predicted_share == 26 / 128
    shape = shape_of(planned, planned.plan.full)
    assert (shape.ids, shape.decoder_ids) == (116, 26)
    assert "DOES NOT FIT" not in page.text(plan_of(planned))


def test_a_cache_has_the_states_of_every_predicted_position(tmp_path: Path) -> None:
    config = llama_7b(tmp_path)
    plan = plan_of(job(config, machine(1)))
    rows = config.steps * config.global_batch_size + config.held_out_sequences
    assert plan.cache_bytes == rows * (config.sequence_length - 1) * 4096 * 2
    assert "A teacher cache would take" in page.text(plan)
    assert plan_of(job(bert_base(tmp_path / "bert"), machine(1))).cache_bytes == 0, "its losses read more"


def test_traffic_follows_the_stage(tmp_path: Path) -> None:
    config = replace(llama_7b(tmp_path), global_batch_size=256)
    size = 6_738_415_616
    once = {"gradients": 2 * size, "weights": 2 * size}

    def traffic(stage: int, ranks: int = 8, placement: str = "replicated", **more: Any) -> dict[str, int]:
        own = job(config, machine(stage, **more), ranks=ranks, placement=placement)
        return step_traffic(own, own.student_plan.full, scored=False)

    assert traffic(1) == pytest.approx(once, rel=1e-6)
    assert traffic(2) == pytest.approx(once | {"gradients": 4 * size}, rel=1e-6)  # two micro batches
    assert traffic(3)["gradients"] == pytest.approx(4 * size / 8, rel=1e-6)
    assert traffic(3)["weights"] == pytest.approx(8 * size, rel=0.05)  # and the head for logits in parts
    assert traffic(2, placement="zero3")["teacher"] == pytest.approx(4 * size, rel=0.5)
    assert traffic(2, ranks=1) == {}


def test_over_the_wire_goes_what_rings_send(tmp_path: Path) -> None:
    """Gradients twice where they are all-reduced, once where they are scattered; weights once; all but the own part."""
    config, size = replace(llama_7b(tmp_path), global_batch_size=256), 6_738_415_616

    def wire(stage: int) -> dict[str, int]:
        own = job(config, machine(stage), ranks=8, placement="replicated")
        return wire_traffic(own, step_traffic(own, own.student_plan.full, scored=False))

    assert wire(1) == pytest.approx({"gradients": 4 * size * 7 / 8, "weights": 2 * size * 7 / 8}, rel=1e-6)
    assert wire(3)["gradients"] == pytest.approx(4 * size * 7 / 8, rel=1e-6)  # of two micro batches
    assert wire(3)["weights"] == pytest.approx(8 * size * 7 / 8, rel=0.05)


def test_a_decoder_attends_to_half_of_its_maps(tmp_path: Path) -> None:
    """As MFU counts it, and time on a GPU; the FLOPs of the plan are all of them, as a counter's."""
    config = llama_7b(tmp_path)
    own = job(config, machine(1), ranks=1)
    maps = 32 * 4096 * 4 * config.sequence_length
    head = own.predicted_share * 2 * 4096 * 32000
    body = 2 * (6_738_415_616 - 2 * 32000 * 4096 - 65 * 4096)
    assert useful_flops(own, own.plan.full) == pytest.approx(4 * (body + head + maps / 2), rel=1e-6)


def test_losses_that_read_no_logits_pay_for_none(tmp_path: Path) -> None:
    config = replace(bert_base(tmp_path), loss=LossConfig(kl=0.0, hidden=0.0, embedding=0.0, mlm=0.0))
    own = job(config, machine(1, micro=32))
    body = body_flops(own.plan, own.plan.full, config.sequence_length, own.predicted_share)
    assert useful_flops(own, own.plan.full) == 4 * body
    spoken = job(replace(config, loss=LossConfig(hidden=0.0, embedding=0.0, mlm=0.0)), machine(1, micro=32))
    tokens = own.tokens * own.accumulation
    made = tokens * (spoken.flops(own.plan.full) - own.flops(own.plan.full)) / H100.product
    later = pace(spoken, own.plan.full, wire={}).seconds - pace(own, own.plan.full, wire={}).seconds
    moved = tokens * own.predicted_share * 62 * own.plan.fixed["vocab"] / H100.bandwidth
    assert later == pytest.approx((made + moved) / REACHED, rel=1e-6)


def test_a_student_as_large_as_its_teacher_is_told(tmp_path: Path) -> None:
    config = llama_7b(tmp_path)
    whole = plan_of(job(replace(config, student=StudentConfig()), machine(1)))
    assert any("as large as its teacher" in warning for warning in whole.warnings)
    assert not any("as large as" in warning for warning in plan_of(job(config, machine(1))).warnings)


def test_the_end_takes_both_models_of_host_memory(tmp_path: Path) -> None:
    """In float32, before they go to the GPUs: the teacher whole on each rank, or in pieces where it stays there."""
    config, teacher = llama_7b(tmp_path), 4 * 6_738_415_616
    plans = [job(config, machine(3), placement=name) for name in ("zero3", "replicated", "cpu_offload")]
    alone, whole, pieces = (host_bytes_around(own) for own in plans)
    assert whole - alone == teacher
    assert pieces - alone == teacher // 8


def test_it_says_what_would_fit_where_the_run_does_not(tmp_path: Path) -> None:
    plan = plan_of(job(llama_7b(tmp_path), machine(1)))
    assert not plan.fits
    assert plan.choices[0].fits
    fitting = [choice for choice in plan.choices if choice.fits]
    assert [choice.hours for choice in fitting] == sorted(choice.hours for choice in fitting)
    assert "does not fit" in plan.warnings[0]
    assert f"ZeRO {fitting[0].stage}" in plan.warnings[0]
    chosen = fitting[0]
    again = plan_of(
        job(llama_7b(tmp_path), machine(chosen.stage, micro=chosen.micro_batch), placement=chosen.placement)
    )
    assert again.fits
    assert again.peak == chosen.peak


def test_means_that_take_time_are_named_where_nothing_else_fits(tmp_path: Path) -> None:
    one = plan_of(job(llama_7b(tmp_path), machine(1, micro=2), ranks=1))
    assert not one.fits
    assert one.choices[0].fits
    assert (one.choices[0].recomputes, one.choices[0].offloads) == (False, True)
    # Masters, moments and gradients in float32, and the teacher, which is read whole.
    assert one.choices[0].host >= 16 * 6_738_415_616
    assert f"with offload_optimizer ({one.choices[0].host / GIB:,.0f} GiB" in one.warnings[0]
    eight = plan_of(job(llama_7b(tmp_path), machine(1)))
    assert not any(choice.offloads for choice in eight.choices)


def test_uneven_widths_are_told_with_the_nearest_even_shape(tmp_path: Path) -> None:
    student = StudentConfig(hidden_size=250, intermediate_size=1000, num_attention_heads=10)
    plan = plan_of(job(replace(bert_base(tmp_path), student=student), machine(1)))
    assert any("hidden 256 with 8 heads, ffn 1024" in warning for warning in plan.warnings)


def test_fused_matrices_are_not_planned_in_pieces(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    config = replace(PRESETS["logit"](), teacher=str(tmp_path), sequence_length=1024)
    assert job(config, machine(2)).placement == "replicated"
    with pytest.raises(HomodistilError, match="fused"):
        job(config, machine(2), placement="zero3")


def test_long_rows_of_attention_maps_are_not_held(tmp_path: Path) -> None:
    """Of 16 x 512 tokens, the maps of 12 layers of two models are 2.4 GB in bf16, and more where they are compared."""
    held = {}
    for length, attention in ((128, 1.0), (512, 1.0), (512, 0.0)):
        config = bert_base(tmp_path)
        config = replace(config, sequence_length=length, loss=replace(config.loss, attention=attention))
        plan = plan_of(job(config, machine(1, micro=64 if length == 128 else 16)))
        assert plan.job.objective.tiled == (length == 512 and attention > 0)
        assert not any("attention maps" in warning for warning in plan.warnings)
        held[length, attention] = footprint(plan.job, plan.job.first_widths).items
    assert held[512, 1.0]["activations"] == held[512, 0.0]["activations"]
    assert 0 < held[512, 1.0]["losses"] - held[512, 0.0]["losses"] < 0.5 * GIB


def test_thousands_of_ranks_are_marked_as_simulated(tmp_path: Path) -> None:
    plan = plan_of(job(replace(bert_base(tmp_path), global_batch_size=4096), machine(1, micro=4), ranks=1024))
    assert as_json(plan)["simulated"]
    assert any(warning.startswith("simulated") for warning in plan.warnings)


def test_the_page_the_picture_and_the_json(tmp_path: Path) -> None:
    plan = plan_of(job(bert_base(tmp_path / "teacher"), machine(1, micro=64)))
    page.write(plan, tmp_path / "plan")
    values = json.loads((tmp_path / "plan" / "plan.json").read_text(encoding="utf-8"))
    assert values["phases"][0]["peak_bytes"] <= values["peak_bytes"]
    assert sum(phase["last_step"] - phase["first_step"] + 1 for phase in values["phases"]) == 28_000
    text = (tmp_path / "plan" / "plan.md").read_text(encoding="utf-8")
    assert "fits" in text
    assert "| 1-" in text
    assert (tmp_path / "plan" / "plan.png").stat().st_size > 5_000


def test_what_cannot_be_planned(tmp_path: Path) -> None:
    with pytest.raises(HomodistilError, match="h10"):
        device_named("h10")
    with pytest.raises(HomodistilError, match="finetune"):
        job(PRESETS["finetune"](), machine(2))
    long = replace(llama_7b(tmp_path), sequence_length=8192)
    with pytest.raises(HomodistilError, match="4096 positions"):
        job(long, machine(2))
    odd = replace(long, sequence_length=2048, global_batch_size=100)
    with pytest.raises(HomodistilError, match="does not divide"):
        job(odd, machine(2))


def plan(config: RunConfig) -> Plan:
    return plan_of(job(config, machine(2, micro=8), ranks=1, device=device_named("cpu")))


def test_a_student_without_cuts_is_one_phase(tmp_path: Path) -> None:
    pruning = PruningConfig(interval=100)
    found = plan(replace(bert_base(tmp_path), cuts=0, pruning=pruning))
    assert [(phase.first, phase.last) for phase in found.phases] == [(1, 28_000)]


@pytest.mark.parametrize(
    ("called", "known"),
    [("Tesla V100-SXM2-32GB", "v100"), ("NVIDIA A100-SXM4-40GB", "a100-40"), ("NVIDIA H100 80GB HBM3", "h100")],
)
def test_a_gpu_is_known_by_what_its_driver_calls_it(called: str, known: str) -> None:
    assert gpu_called(called) == replace(GPUS[known], name=called)


def test_a_gpu_that_is_not_known_says_whose_rates_it_has() -> None:
    found = gpu_called("NVIDIA GH200 480GB")
    assert found.peak == GPUS["a100"].peak
    assert "not known" in found.name


def test_ranks_of_one_machine_share_its_memory() -> None:
    whole, share = device_named("cpu"), device_named("cpu", 4)
    assert (share.memory - share.framework) / (whole.memory - whole.framework) == pytest.approx(0.25, rel=0.1)


def test_what_comes_after_cuts_comes_when_it_takes_no_more_than_the_beginning(tmp_path: Path) -> None:
    recomputed = machine(3, micro=1) | {"activation_checkpointing": {}}
    stated = Machine(ds_config=recomputed, ds_config_after_cuts=machine(3, micro=1), teacher_placement="zero3")
    began = job_of(llama_7b(tmp_path), stated, nodes=1, ranks_per_node=8, device=H100)
    most = footprint(began, began.first_widths).peak
    found = [job_at(began, cut.widths) for cut in began.milestones]
    kept = [footprint(replace(began, machine=began.later or {}), cut.widths).peak for cut in began.milestones]
    assert ["activation_checkpointing" in own.machine for own in found] == [peak > most for peak in kept]
    assert "activation_checkpointing" in found[0].machine
    assert "activation_checkpointing" not in found[-1].machine


def test_what_a_step_moves_in_memory_counts_every_read_of_a_layer(tmp_path: Path) -> None:
    bert = job(bert_base(tmp_path), machine(2))
    assert per_token(bert, bert.plan, bert.plan.full) == 12 * 17 * 768
    llama = job(llama_7b(tmp_path), machine(2))
    assert per_token(llama, llama.plan, llama.plan.full) == 32 * (10 * 4096 + 3 * 11008)
