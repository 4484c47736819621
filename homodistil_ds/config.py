"""RunConfig: every science fact of a run, frozen, and its JSON form. Machine facts live in ds_configs/."""

from __future__ import annotations

import json
import math
import types
import typing
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from homodistil_ds.errors import HomodistilError, did_you_mean, require
from homodistil_ds.pruning.family import check_scales
from homodistil_ds.task_config import MixupConfig, TaskConfig, TaskLossConfig

ON_TASKS = ("finetune", "mixkd", "minidisc")  # methods that learn a task
BUILTIN = "builtin"  # names the embedded teacher and the corpus that every Python installation carries


@dataclass(frozen=True, kw_only=True)
class StudentConfig:
    """The shape to reach. Names are those of a Hugging Face configuration; None keeps the teacher's value."""

    hidden_size: int | None = None
    """Width of the residual stream at the end."""
    intermediate_size: int | None = None
    """Feed-forward width at the end."""
    num_attention_heads: int | None = None
    """Attention heads per layer at the end; the head size is hidden_size / num_attention_heads."""
    num_hidden_layers: int | None = None
    """Layers, from the start; fewer than the teacher's are taken from it as `layers` says."""
    layers: Literal["uniform", "spread", "first"] = "uniform"
    """Which layers of the teacher a shallower student starts from and is compared with: the last of each of its
    equal stretches, its first to its last at even distances, or the first ones."""
    init: Literal["teacher", "random"] = "teacher"
    """teacher: start as a copy and be pruned. random: start small with random weights (a baseline); its heads are
    compared with the teacher's first ones."""
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    """Number format of the saved student; auto is the teacher's."""

    @property
    def is_reshaped(self) -> bool:
        """Whether it is to be anything but a copy of the model that it starts from."""
        sizes = (self.hidden_size, self.intermediate_size, self.num_attention_heads, self.num_hidden_layers)
        return any(size is not None for size in sizes) or self.init != "teacher"


@dataclass(frozen=True, kw_only=True)
class PruningConfig:
    """When and by which rule neurons leave (method equations H1-H7)."""

    start: float = 0.0
    """Share of the steps after which pruning begins."""
    end: float = 0.7
    """Share of the steps at which the target shape is reached; start equal to end prunes in one shot."""
    interval: int = 10
    """Optimizer steps between two prune events."""
    criterion: Literal["sensitivity", "magnitude", "taylor", "platon"] = "sensitivity"
    """How one weight entry is valued; sensitivity is |weight * gradient|."""
    beta: float = 0.85
    """Decay of the moving average of the scores."""
    rest: float = 0.02
    """Share of the steps for which each larger student of a family is trained at its own size before it is left."""

    def __post_init__(self) -> None:
        shares = f"start {self.start} and end {self.end}"
        in_order = 0.0 <= self.start <= self.end <= 1.0
        require("pruning", shares, in_order, "Use 0 <= start <= end <= 1; equal values prune in one shot.")
        require("pruning.interval", self.interval, self.interval >= 1, "Use 1 or more.")
        require("pruning.beta", self.beta, 0.0 <= self.beta < 1.0, "Use 0 or more, below 1.")
        require("pruning.rest", self.rest, 0.0 <= self.rest < 1.0, "Use a share of 0 or more, below 1.")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """Weights of the loss terms (H9); 0 leaves a term out, and what only it reads is not computed."""

    mlm: float = 1.0
    kl: float = 1.0
    hidden: float = 1.0
    attention: float = 1.0
    embedding: float = 1.0
    reverse_kl: float = 0.0
    """KL(student || teacher) of the predicted tokens: keeps to what the teacher finds likely."""
    jsd: float = 0.0
    """Jensen-Shannon divergence of the predicted tokens: between kl and reverse_kl."""
    cosine: float = 0.0
    """(B2) direction of the last layer's states; needs the teacher's hidden size. DistilBERT's."""
    scores: float = 0.0
    """(B3) attention scores before the softmax, all layers. TinyBERT's."""
    attention_kl: float = 0.0
    """(B4) KL of the last layer's attention maps. MiniLM's."""
    value_relation: float = 0.0
    """(B4) KL of the last layer's relations between values. MiniLM's."""
    relation: float = 0.0
    """(B5) KL of the last layer's relations between queries, keys and values in relation_heads heads. MiniLMv2's."""
    relation_heads: int = 12
    """Heads that queries, keys and values are cut into for `relation`; must divide hidden sizes of both models."""
    temperature: float = 1.0
    """Softmax temperature of the terms kl (H10), reverse_kl and jsd."""

    def __post_init__(self) -> None:
        weights = {name: value for name, value in vars(self).items() if name not in ("temperature", "relation_heads")}
        for name, value in weights.items():
            require(f"loss.{name}", value, math.isfinite(value) and value >= 0, "Use 0 or more.")
        require("loss", "all weights are 0", any(weights.values()), "Give at least one term a weight above 0.")
        require("loss.relation_heads", self.relation_heads, self.relation_heads >= 1, "Use 1 or more.")
        tau = self.temperature
        require("loss.temperature", tau, math.isfinite(tau) and tau > 0, "Use a number above 0.")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """Adam with decoupled weight decay, linear warm-up and linear decay."""

    name: Literal["fused_adam", "adamw", "apex_fused_adam"] = "fused_adam"
    """fused_adam: DeepSpeed's; adamw: torch's; apex_fused_adam: NVIDIA apex, if it is installed."""
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    weight_decay: float = 0.01
    warmup: float = 0.1
    """Share of the steps over which the learning rate rises."""

    def __post_init__(self) -> None:
        for name, value in (("beta1", self.beta1), ("beta2", self.beta2)):
            require(f"optimizer.{name}", value, 0.0 <= value < 1.0, "Use 0 or more, below 1.")
        require("optimizer.eps", self.eps, math.isfinite(self.eps) and self.eps > 0, "Use a number above 0.")
        decay = self.weight_decay
        require("optimizer.weight_decay", decay, math.isfinite(decay) and decay >= 0, "Use 0 or more.")
        require("optimizer.warmup", self.warmup, 0.0 <= self.warmup <= 1.0, "Use a share between 0 and 1.")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run. Saved as run_config.json in the run directory and read back with --config."""

    method: Literal["homodistil", "pretrain", "finetune", "mixkd", "minidisc"] = "homodistil"
    """homodistil: prune and distil a student. pretrain: language-model training without a teacher. finetune: a
    model learns a task. mixkd: a model learns a task from a teacher that knows it. minidisc: nested students of a
    family learn a task together from a teacher that knows it."""
    teacher: str = BUILTIN
    """Folder or hub name of the teacher; 'builtin' is the small BERT inside this package. A teacher of mixkd that has
    not learnt the task yet learns it first."""
    model: str = BUILTIN
    """Folder or hub name of the model that learns a task (finetune, mixkd)."""
    corpus: tuple[str, ...] = (BUILTIN,)
    """Files or folders (.txt .jsonl .parquet, also .gz .xz .zst), a hub data set, 'builtin', or one prepared folder."""
    output_dir: str = "runs/demo"
    """Run directory; must not hold a run yet, unless that is resumed."""
    steps: int = 300
    """Optimizer steps; 0 leaves them to the epochs of a task."""
    seed: int = 0
    global_batch_size: int = 32
    """Sequences per optimizer step, over all ranks and accumulation steps."""
    sequence_length: int = 128
    """Tokens per sequence, those included that the tokenizer adds."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    mask_probability: float = 0.15
    """Share of the tokens that are masked, or taken out as spans, and predicted."""
    held_out_sequences: int = 128
    """Sequences kept out of training for the held-out loss."""
    eval_interval: int = 50
    """Steps between held-out evaluations, the first of which comes before step 1; 0 evaluates at the end only."""
    log_interval: int = 10
    """Steps between log lines."""
    save_interval: int = 0
    """Steps between checkpoints; 0 saves one at the end only."""
    save_total_limit: int = 2
    """Newest checkpoints to keep."""
    cuts: int = 8
    """At most how often masked neurons are taken out of the running student; 0 keeps them, masked, to the end."""
    family: tuple[float, ...] = ()
    """Scales at which the run leaves a student behind on its way down, such as 0.75,0.5,0.25: the kept shares of the
    matrices of the layers, largest first. The last one is the student's, in place of the --student sizes."""
    assistant: str = "none"
    """Which student of the family teaches the smaller ones in a second descent: auto (the best trade-off, MiniDisc's
    rule), capacity (the one nearest to 2.5 times the last one's parameters), one of the scales, or none."""
    scales_of: str = ""
    """Folder or hub name of the model whose matrices the scales of the family are shares of; empty: the teacher's."""
    trade_off: float = 0.2
    """What a whole scale less is worth in the trade-off of a family (M1)."""
    step_timeout: float = 900.0
    """Seconds without a finished step after which a run counts as hung and ends."""
    save_student: bool = True
    """Whether a task leaves its trained model behind; without it only figures and predictions."""
    student: StudentConfig = field(default_factory=StudentConfig)
    pruning: PruningConfig = field(default_factory=PruningConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    task: TaskConfig = field(default_factory=TaskConfig)
    task_loss: TaskLossConfig = field(default_factory=TaskLossConfig)
    mixup: MixupConfig = field(default_factory=MixupConfig)

    def __post_init__(self) -> None:
        for name, low in (
            ("steps", 0 if self.method in ON_TASKS else 1),
            ("global_batch_size", 1),
            ("sequence_length", 8),
            ("held_out_sequences", 1),
            ("log_interval", 1),
            ("eval_interval", 0),
            ("save_interval", 0),
            ("save_total_limit", 1),
            ("cuts", 0),
        ):
            require(name, getattr(self, name), getattr(self, name) >= low, f"Use {low} or more.")
        require("step_timeout", self.step_timeout, self.step_timeout > 0, "Use a number of seconds above 0.")
        positive = math.isfinite(self.learning_rate) and self.learning_rate > 0
        require("learning_rate", self.learning_rate, positive, "Use a number above 0.")
        inside = 0.0 < self.mask_probability < 1.0
        require("mask_probability", self.mask_probability, inside, "Use a share between 0 and 1, such as 0.15.")
        require("trade_off", self.trade_off, math.isfinite(self.trade_off), "Use a number, such as 0.2.")
        if self.family:
            self._check_family()
        lone = "--assistant chooses among the students of a family: give --family two scales or more."
        require("assistant", self.assistant, self.assistant == "none" or len(self.family) > 1, lone)
        require("seed", self.seed, -(2**63) <= self.seed < 2**63, "Use a number of 64 bits.")
        if self.method == "pretrain":
            self._check_pretrain()
        if self.method in ON_TASKS:
            self._check_task()

    def _check_task(self) -> None:
        called, nested = f"method {self.method}", self.method == "minidisc"
        shape = "--family alone sets its students' sizes" if nested else "it keeps the model's own shape and weights"
        remedy = (
            "Leave the --student flags out." if nested else "Leave the --student flags out; --model learns the task."
        )
        require(called, shape, not self.student.is_reshaped, remedy)
        teaches = self.task_loss.learns_from_teacher
        remedy = "Use --method mixkd or minidisc, or set --task_loss.kd, .mixed_kd, .patience and .states to 0."
        require(called, "a loss needs a teacher", self.method != "finetune" or not teaches, remedy)
        reads = "kd or .states" if nested else "kd, .mixed_kd or .patience"
        remedy = f"Give --task_loss.{reads} a weight, or use --method finetune."
        require(called, "no loss reads the teacher", self.method == "finetune" or teaches, remedy)
        states = self.task_loss.states
        if nested:
            self._check_nested()
        else:
            lifted = "Only the students of minidisc are lifted to the teacher's width: set --task_loss.states 0."
            require("task_loss.states", states, states == 0, lifted)

    def _check_nested(self) -> None:
        require(
            "method minidisc", "it has no family", bool(self.family), "Name its students' scales: --family 0.5,0.1."
        )
        narrow = "Its students are narrower than the teacher: set --task_loss.patience 0."
        require("method minidisc", "task_loss.patience is not 0", self.task_loss.patience == 0, narrow)
        mixes = self.task_loss.mixes(with_teacher=True)
        require("method minidisc", "it mixes examples", not mixes, "Set --task_loss.mixed_task and .mixed_kd 0.")

    def assistants(self) -> list[str]:
        """What --assistant may name besides none."""
        return ["auto", "capacity", *(f"{scale:g}" for scale in self.family[:-1])]

    def _check_family(self) -> None:
        check_scales(self.family)
        shown = ",".join(f"{scale:g}" for scale in self.family)
        prunes = self.method in ("homodistil", "minidisc") and self.student.init == "teacher"
        known = ["none", *self.assistants()]
        remedy = f"Use one of {', '.join(known)}: the last of the family is the one that is taught."
        require("assistant", self.assistant, self.assistant in known, remedy)
        require("family", shown, prunes, "Only a student that is pruned has sizes to pass: use homodistil or minidisc.")

    def _check_pretrain(self) -> None:
        changed = self.student.is_reshaped
        remedy = "Leave the --student flags out and start from --preset correct_teacher."
        require("method pretrain", "it keeps the model's own widths and weights", not changed, remedy)
        require("method pretrain", "loss.mlm is 0", self.loss.mlm > 0, "Its only loss is mlm: use a weight above 0.")

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2) + "\n"


def load_run_config(path: Path) -> RunConfig:
    """Read a saved run configuration. Raises HomodistilError for a missing file, bad JSON or an unknown key."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise HomodistilError(
            "CFG-NO-FILE", f"--config {path}: {error.strerror}", "Point it at a run_config.json of an earlier run."
        ) from error
    except ValueError as error:
        raise HomodistilError("CFG-JSON", f"--config {path}: {error}", "Mend the JSON at that place.") from error
    return from_dict(RunConfig, values, where=str(path))


def from_dict(cls: type[Any], values: Any, where: str) -> Any:
    """Build a config dataclass from plain JSON values; every key must be known and every value of the right type."""
    if not isinstance(values, dict):
        raise HomodistilError("CFG-TYPE", f"{where}: expected an object, found {type(values).__name__}", "Use {...}.")
    hints = typing.get_type_hints(cls)
    known = {f.name for f in fields(cls)}
    for name in values:
        if name not in known:
            raise HomodistilError("CFG-UNKNOWN-KEY", f"{where}: unknown key '{name}'", did_you_mean(name, known))
    converted = {name: _convert(hints[name], value, f"{where}: {name}") for name, value in values.items()}
    return cls(**converted)


def _convert(hint: Any, value: Any, where: str) -> Any:
    if is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple and isinstance(value, list):
        return tuple(_convert(arguments[0], item, where) for item in value)
    if origin in (types.UnionType, typing.Union):
        hint = next(a for a in arguments if a is not types.NoneType)
        return None if value is None else _convert(hint, value, where)
    if origin is Literal:
        if value not in arguments:
            raise HomodistilError("CFG-VALUE", f"{where} is {value!r}", did_you_mean(str(value), map(str, arguments)))
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise HomodistilError(
            "CFG-TYPE", f"{where} is {value!r}", f"Use a value of type {getattr(hint, '__name__', hint)}."
        )
    return value
