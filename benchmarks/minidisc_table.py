"""The tables of benchmarks/minidisc.py, from the run directories in its folder. It runs nothing."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from quality_table import Runs, line, nats, runs_of, scored, training_seconds

from homodistil_ds.evaluation.glue_table import spread
from homodistil_ds.pruning.family import assistant_by_gap, best_assistant, relative_likelihood, trade_off

WEIGHTS = (0.0, 0.1, 0.2, 0.3, 0.5, 1.0)  # of the trade-off, tried on the same trials
PUBLISHED = 0.2
ASSISTANT = "assistant-"


@dataclass(frozen=True, kw_only=True)
class Setting:
    """One task, or the corpus, with one seed: the trial's members, and what every arm's students came to.

    `metrics` are those of the trial's members that (M1) reads; `scores` arm -> target -> figure; `seconds` arm -> CPU
    seconds of training.
    """

    name: str
    seed: int
    scales: Sequence[float]
    metrics: Sequence[float]
    kept: Sequence[float]
    parameters: Sequence[int]
    better: int
    """1 where the larger score is better, -1 where the smaller one is."""
    last_score: float
    """Of the trial's last member."""
    scores: Mapping[str, Mapping[float, float]]
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def arms(self) -> list[str]:
        """Of every setting: direct distillation, and each member but the last as an assistant."""
        return ["direct", *(f"{ASSISTANT}{scale:g}" for scale in self.scales[:-1])]

    def choice(self, weight: float, target: float) -> float:
        """The scale that (M2) takes above a target."""
        above = [place for place, scale in enumerate(self.scales) if scale > target]
        return self.scales[above[best_assistant([self.trade(place, weight) for place in above])]]

    def stops(self, weight: float, target: float) -> bool:
        """Whether the target itself has the best trade-off, where the published code ends after the trial."""
        there = [place for place, scale in enumerate(self.scales) if scale >= target]
        return best_assistant([self.trade(place, weight) for place in there]) == len(there) - 1

    def by_gap(self, target: float) -> float:
        there = [place for place, scale in enumerate(self.scales) if scale >= target]
        return self.scales[there[assistant_by_gap([self.parameters[place] for place in there])]]

    def trade(self, place: int, weight: float) -> float:
        return trade_off(self.metrics[place], self.kept[place], weight)

    def regret(self, scale: float, target: float) -> float:
        """How much better the best fixed choice is than this one."""
        found = [
            self.better * own[target] for arm, own in self.scores.items() if arm.startswith(ASSISTANT) and target in own
        ]
        return max(found) - self.better * self.scores[f"{ASSISTANT}{scale:g}"][target]


Known = Mapping[str, Any]  # what a minidisc.json holds


def known_from(path: Path | None) -> Known:
    return json.loads(path.read_text(encoding="utf-8")) if path else {}


def write(folder: Path, known: Known) -> str:
    """minidisc.md and minidisc.json of what is in a folder and of what is known besides; returns the page."""
    on_tasks = together(known.get("tasks", ()), read(folder / "tasks", 1))
    text = together(known.get("text", ()), read(folder / "text", -1))
    learnt = {name: dict(runs) for name, runs in known.get("text_on_tasks", {}).items()}
    for path in sorted(path for path in (folder / "text_on_tasks").glob("*/*") if path.is_dir()):
        learnt[path.name] = every_run(learnt.get(path.name, {}), runs_of(path))
    cost = folder / "cost.json"
    measured = json.loads(cost.read_text(encoding="utf-8")) if cost.exists() else known.get("cost")
    parts = [arms_table(on_tasks), choices_table(on_tasks), arms_table(text), choices_table(text)]
    families = together(known.get("text", ()), trials(folder / "text", -1))
    parts += [family_table(families), learnt_table(learnt), cost_table(measured) if measured else ""]
    page = "\n\n".join(part for part in parts if part) + "\n"
    facts = {"settings": json.loads((folder / "settings.json").read_text(encoding="utf-8"))}
    facts |= {"tasks": [vars(own) for own in on_tasks], "text": [vars(own) for own in text], "text_on_tasks": learnt}
    (folder / "minidisc.json").write_text(json.dumps({**facts, "cost": measured}, indent=1) + "\n", encoding="utf-8")
    (folder / "minidisc.md").write_text(page, encoding="utf-8")
    return page


def together(known: Sequence[Mapping[str, Any]], own: Sequence[Setting]) -> list[Setting]:
    """Settings of a minidisc.json and those of a folder, which count where both have one."""
    found = {(row["name"], row["seed"]): restored(row) for row in known} | {(one.name, one.seed): one for one in own}
    return [found[key] for key in sorted(found)]


def every_run(known: Runs, own: Runs) -> Runs:
    """Runs by task, one of each seed: those of a folder count where both have one."""
    found = {
        task: {run["seed"]: run for run in (*known.get(task, ()), *own.get(task, ()))} for task in {**known, **own}
    }
    return {task: [by_seed[seed] for seed in sorted(by_seed)] for task, by_seed in found.items()}


def restored(row: Mapping[str, Any]) -> Setting:
    """JSON's names are texts."""
    scores = {arm: {float(target): value for target, value in own.items()} for arm, own in row["scores"].items()}
    return Setting(**{**row, "scores": scores})


def read(folder: Path, better: int) -> list[Setting]:
    """The settings whose runs are all complete, in <task>/<seed>/ or in <seed>/."""
    return [setting for setting in trials(folder, better) if set(setting.arms) <= set(setting.scores)]


def trials(folder: Path, better: int) -> list[Setting]:
    """Every setting whose trial is complete, with those of its arms that are."""
    return [setting_of(path.parent.parent, better) for path in sorted(folder.glob("**/trial/report.json"))]


def setting_of(place: Path, better: int) -> Setting:
    reports = {path.parent.name: json.loads(path.read_text(encoding="utf-8")) for path in place.glob("*/report.json")}
    members = reports["trial"]["family"]
    metric = "score" if better > 0 else "heldout_loss"
    return Setting(
        name=reports["trial"].get("task") or "text",
        seed=reports["trial"]["seed"],
        scales=[row["scale"] for row in members],
        metrics=[metric_of(row, reports["trial"]) for row in members],
        kept=[row["kept"] for row in members],
        parameters=[row["parameters"] for row in members],
        better=better,
        last_score=members[-1][metric],
        scores={
            arm: {row["scale"]: row[metric] for row in report["family"]}
            or {members[-1]["scale"]: report["student"][metric]}
            for arm, report in reports.items()
            if arm != "trial"
        },
        seconds={arm: training_seconds(report) for arm, report in reports.items()},
    )


def metric_of(row: Mapping[str, Any], trial: Mapping[str, Any]) -> float:
    """What (M1) reads of one of the trial's members."""
    if "score" in row:
        return float(row["score"])
    return relative_likelihood(row["heldout_loss"], trial["teacher"]["heldout_loss"])


def arms_table(settings: Sequence[Setting]) -> str:
    """What every arm's students come to, and what they cost."""
    if not settings:
        return ""
    arms = arms_of(settings)
    lines = [line(["", "at", *(arm.replace("-", " ") for arm in arms)]), "|:--|--:|" + "--:|" * len(arms)]
    for name, target in cells_of(settings):
        own = [setting for setting in settings if setting.name == name]
        found = [[setting.scores[arm][target] for setting in own if target in setting.scores[arm]] for arm in arms]
        lines.append(line([name, f"{target:g}", *(shown(values, own[0].better) for values in found)]))
    seconds = [[setting.seconds[arm] for setting in settings if arm in setting.seconds] for arm in arms]
    costs = [f"{statistics.mean(values):.0f}" for values in seconds]
    trial = statistics.mean(setting.seconds["trial"] for setting in settings)
    lines.append(line([f"CPU s of one run (the trial: {trial:.0f})", "", *costs]))
    return "\n".join(lines)


def arms_of(settings: Sequence[Setting]) -> list[str]:
    """Direct distillation first, then the assistants from the largest; only what every setting has."""
    common = set.intersection(*(set(setting.scores) for setting in settings))
    arms = sorted((arm for arm in common if arm.startswith(ASSISTANT)), key=lambda arm: -float(arm[len(ASSISTANT) :]))
    return [*(arm for arm in ("direct", "direct-twice") if arm in common), *arms]


def cells_of(settings: Sequence[Setting]) -> list[tuple[str, float]]:
    names = dict.fromkeys(setting.name for setting in settings)
    return [(name, target) for name in names for target in settings[0].scores["direct"]]


def shown(values: Sequence[float], better: int) -> str:
    if not values:
        return ""
    return spread(values) if better > 0 else nats(values)


def choices_table(settings: Sequence[Setting]) -> str:
    """The choices that cost one trial against the best that trying every assistant finds."""
    taught = [arm for arm in arms_of(settings) if arm.startswith(ASSISTANT)] if settings else []
    if not taught:
        return ""
    heads = ["", "at", "best fixed in hindsight", f"chosen at {PUBLISHED:g} (by seed)", "published code stops"]
    heads += [f"regret at {weight:g}" for weight in WEIGHTS] + ["capacity gap chooses", "its regret"]
    lines = [line(heads), "|:--|--:|--:|--:|--:|" + "--:|" * (len(WEIGHTS) + 2)]
    for name, target in cells_of(settings):
        own = [setting for setting in settings if setting.name == name]
        lines.append(line([name, f"{target:g}", *choices(own, target, taught)]))
    unit = "hundredths" if settings[0].better > 0 else "nats"
    said = f"Regret in {unit}: what the best assistant of the same seed is better by."
    return "\n".join([*lines, "", said, "", *costs_lines(settings, taught)])


def choices(own: Sequence[Setting], target: float, taught: Sequence[str]) -> list[str]:
    """The cells of one task and target: the best assistant over all seeds, what each rule takes, what that loses."""
    able = [arm for arm in taught if target in own[0].scores[arm]]
    best = max(able, key=lambda arm: statistics.mean(one.better * one.scores[arm][target] for one in own))
    gaps = [one.by_gap(target) for one in own]
    regrets = [[one.regret(one.choice(weight, target), target) for one in own] for weight in WEIGHTS]
    of_gap = [one.regret(scale, target) for one, scale in zip(own, gaps, strict=True)]
    return [
        best.removeprefix(ASSISTANT),
        ", ".join(f"{one.choice(PUBLISHED, target):g}" for one in own),
        f"{sum(one.stops(PUBLISHED, target) for one in own)} of {len(own)}",
        *(shown(values, own[0].better) for values in regrets),
        ", ".join(sorted({f"{scale:g}" for scale in gaps})),
        shown(of_gap, own[0].better),
    ]


def costs_lines(settings: Sequence[Setting], taught: Sequence[str]) -> list[str]:
    """What each way costs in all."""
    heads = ["CPU s, mean over seeds", "at", "direct", "direct twice", f"trial and the choice at {PUBLISHED:g}"]
    lines = [line([*heads, "trial and every assistant"]), "|:--|--:|--:|--:|--:|--:|"]
    for name, target in cells_of(settings):
        own = [setting for setting in settings if setting.name == name]
        able = [arm for arm in taught if target in own[0].scores[arm]]
        lines.append(line([name, f"{target:g}", *costs(own, target, able)]))
    return [*lines, "", "A run that leaves students at both targets is counted whole at each."]


def costs(own: Sequence[Setting], target: float, able: Sequence[str]) -> list[str]:
    """CPU seconds of direct distillation, of twice its steps, of the choice in all, and of trying every assistant."""
    spent = [
        (
            one.seconds["direct"],
            one.seconds.get("direct-twice", float("nan")),
            one.seconds["trial"] + one.seconds[f"{ASSISTANT}{one.choice(PUBLISHED, target):g}"],
            one.seconds["trial"] + sum(one.seconds[arm] for arm in able),
        )
        for one in own
    ]
    return [f"{statistics.mean(values):.0f}" for values in zip(*spent, strict=True)]


def family_table(settings: Sequence[Setting]) -> str:
    """What a family on the way down costs, against the smallest student alone."""
    alone = [(setting, f"alone-{setting.scales[-1]:g}") for setting in settings]
    rows = [(setting, arm) for setting, arm in alone if arm in setting.scores]
    if not rows:
        return ""
    lines = [line(["alone", "seed", "CPU s of the family", "CPU s alone", "ratio", "loss in the family", "loss alone"])]
    lines.append("|--:|--:|--:|--:|--:|--:|--:|")
    for setting, arm in rows:
        target, family, own = setting.scales[-1], setting.seconds["trial"], setting.seconds[arm]
        figures = [f"{family:.0f}", f"{own:.0f}", f"{family / own:.2f}"]
        figures += [f"{setting.last_score:.3f}", f"{setting.scores[arm][target]:.3f}"]
        lines.append(line([f"{target:g}", str(setting.seed), *figures]))
    return "\n".join(lines)


def learnt_table(learnt: Mapping[str, Runs]) -> str:
    """The students of text, fine-tuned."""
    tasks = sorted({task for runs in learnt.values() for task in runs})
    if not tasks:
        return ""
    lines = [line(["fine-tuned student", *tasks]), "|:--|" + "--:|" * len(tasks)]
    for name, runs in learnt.items():
        lines.append(line([name.replace("-", " "), *(scored(runs.get(task, [])) for task in tasks)]))
    return "\n".join(lines)


def cost_table(found: Mapping[str, Any]) -> str:
    """The nested students together against each alone."""
    seconds, peaks = dict(found["cpu_seconds_per_step"]), dict(found["peak_bytes"])
    together = ",".join(map(str, found["family"]))
    largest, smallest = str(found["family"][0]), str(found["family"][-1])
    alone = sum(value for family, value in seconds.items() if family != together)
    above = (peaks[together] - peaks[smallest]) / (peaks[largest] - peaks[smallest])
    lines = [line(["students", "CPU s per step", "peak memory at BERT-base's size (GiB)"]), "|:--|--:|--:|"]
    for family, value in seconds.items():
        memory = f"{peaks[family] / 2**30:.2f}" if family in peaks else ""
        lines.append(line([family.replace(",", ", "), f"{value:.2f}", memory]))
    return "\n".join(
        [
            *lines,
            "",
            f"A step of all together takes {seconds[together] / alone:.2f} of the steps of each alone. Peak memory is "
            f"{peaks[together] / peaks[largest]:.2f} times that of the largest alone; of what that one needs more than "
            f"the smallest, {above:.2f} times.",
        ]
    )
