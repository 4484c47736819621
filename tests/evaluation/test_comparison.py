"""The comparison of runs: what is in the files is on the page, as text; what is damaged is named."""

from __future__ import annotations

import html.parser
import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest

from homodistil_ds.errors import HomodistilError
from homodistil_ds.evaluation.comparison import Latency, comparison, differences, language_table, task_table
from homodistil_ds.evaluation.comparison_figures import comparison_figures
from homodistil_ds.evaluation.finished import LanguageRun, TaskRun, models_of, read_runs
from homodistil_ds.evaluation.page import Code, Line, Page, Table, to_html, to_markdown

HOSTILE = '<script>alert("x")</script>|`*[a](javascript:b)*` $\\frac{ _x_'
MEASURED = {"threads": 2, "length": 128, "load": 0.25, "cores": 4, "seconds": {"1": [0.02, 0.01], "32": [0.4, 0.2]}}


def model(hidden: int, loss: float | None, kl: float | None) -> dict[str, Any]:
    widths = {
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "num_attention_heads": 4,
        "head_size": hidden // 4,
    }
    return {
        "parameters": 1000 * hidden,
        "parameters_without_embeddings": 600 * hidden,
        "widths": widths | {"head_size": hidden // 4, "num_hidden_layers": 6, "vocab_size": 8000},
        "file_bytes": 2**20 * hidden,
        "heldout_loss": loss,
        "discrepancy_kl": kl,
        "tokens_per_second": 1.0 * hidden,
    }


def report(name: str, hidden: int, **changed: Any) -> dict[str, Any]:
    values = {
        "name": name,
        "method": "homodistil",
        "teacher": model(256, 3.0, 0.0),
        "student": model(hidden, 3.5, 0.25),
        "steps": 300,
        "tokens": 1_228_800,
        "wall_seconds": 200.0,
        "loop_seconds": 180.0,
        "seed": 3,
        "corpus_fingerprint": "cd34",
        "versions": {"torch": "2.13.0"},
        "history": [
            {"step": 1, "total": 9.0, "mlm": 8.0, "kept_hidden": 256},
            {"step": 200, "total": 5.0, "mlm": None, "kept_hidden": hidden},
            {"step": 200, "heldout_loss": 3.75, "discrepancy_kl": 0.5, "kept_hidden": hidden},
        ],
    }
    return values | changed


TASK = {
    "kind": "task",
    "name": "sst2-half",
    "method": "finetune",
    "task": "sst2",
    "parameters": 2_500_000,
    "metrics": {"validation": {"accuracy": 0.9123, "f1": 0.9}, "train": {"accuracy": 0.99}},
    "primary": 0.9123,
    "steps": 900,
    "seed": 0,
    "train_examples": 67_349,
    "loop_seconds": 61.0,
    "history": [{"step": 10, "loss": 0.7}, {"step": 900, "loss": 0.2, "accuracy": 0.9}],
}


def write(folder: Path, values: dict[str, Any], config: dict[str, Any] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "report.json").write_text(json.dumps(values), encoding="utf-8")
    if config is not None:
        (folder / "run_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def cells(table: Table, row: int) -> dict[str, str]:
    return dict(zip(table.header, table.rows[row], strict=True))


@pytest.fixture
def language(tmp_path: Path) -> list[LanguageRun]:
    config = {"steps": 300, "output_dir": "a", "teacher": "builtin", "student": {"hidden_size": 128, "dtype": "auto"}}
    other = config | {"output_dir": "b", "student": {"hidden_size": 64, "dtype": "auto"}}
    folders = [write(tmp_path / "a", report("half", 128), config), write(tmp_path / "b", report("small", 64), other)]
    runs = read_runs(folders)
    assert all(isinstance(run, LanguageRun) for run in runs)
    return runs  # type: ignore[return-value]


@pytest.fixture
def task(tmp_path: Path) -> TaskRun:
    (run,) = read_runs([write(tmp_path / "task", TASK)])
    assert isinstance(run, TaskRun)
    return run


def test_every_figure_of_a_run_is_in_its_row_and_a_shared_teacher_has_one(language: list[LanguageRun]) -> None:
    table = language_table(language)
    assert [row[0] for row in table.rows] == ["teacher", "half", "small"]
    assert cells(table, 0)["held-out loss (nats)"] == "3.0000"
    assert cells(table, 1) == {
        "run": "half",
        "method": "homodistil",
        "hidden / ffn / heads x size": "128 / 512 / 4 x 32",
        "layers": "6",
        "parameters": "128,000",
        "without embeddings": "76,800",
        "weights file (MiB)": "128.00",
        "held-out loss (nats)": "3.5000",
        "discrepancy KL (nats)": "0.2500",
        "steps": "300",
        "tokens": "1,228,800",
        "wall time": "3 min 20 s",
        "training loop": "3 min 00 s",
    }


def test_decoders_have_a_perplexity(tmp_path: Path) -> None:
    runs = read_runs([write(tmp_path / "a", report("a", 64, language_model="causal"))])
    table = language_table([run for run in runs if isinstance(run, LanguageRun)])
    assert [cells(table, row)["perplexity"] for row in (0, 1)] == ["20.09", "33.12"]


def test_a_column_without_a_value_is_left_out(tmp_path: Path) -> None:
    student = model(64, 4.0, None) | {"file_bytes": 0}
    alone = report("alone", 64, teacher=None, student=student, loop_seconds=None)
    runs = [run for run in read_runs([write(tmp_path / "a", alone)]) if isinstance(run, LanguageRun)]
    header = language_table(runs).header
    assert not {"discrepancy KL (nats)", "weights file (MiB)", "training loop"} & set(header)
    assert "held-out loss (nats)" in header


def test_task_runs_have_a_table_of_their_own(language: list[LanguageRun], task: TaskRun) -> None:
    row = cells(task_table([task]), 0)
    assert row["score"] == row["validation accuracy"] == "0.9123"
    assert (row["validation f1"], row["train accuracy"]) == ("0.9000", "0.9900")
    assert (row["task"], row["train examples"], row["parameters"]) == ("sst2", "67,349", "2,500,000")
    page = comparison([*language, task], "t", {})
    assert list(page.sections)[:2] == ["Runs", "Task runs"]


def test_only_what_differs_between_settings_is_listed(language: list[LanguageRun]) -> None:
    table = differences(language)
    assert isinstance(table, Table)
    assert table.rows == [["student.hidden_size", "128", "64"]]
    assert isinstance(differences(language[:1]), Line)


def test_runs_of_one_name_are_told_apart_and_one_given_twice_counts_once(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, report("demo", 64)) for name in ("a", "b")]
    labels = [run.label for run in read_runs([*folders, folders[0]])]
    assert labels == [f"demo ({folder})" for folder in folders]


def test_other_corpora_are_pointed_out(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, report(name, 64, corpus_fingerprint=name)) for name in ("a", "b")]
    runs = read_runs(folders)
    assert "same corpus" in to_markdown(comparison(runs, "t", {}), "figures")
    assert "same corpus" not in to_markdown(comparison(runs[:1], "t", {}), "figures")


def test_a_saved_student_is_shown_how_to_load_and_can_be_timed(tmp_path: Path) -> None:
    folders = [write(tmp_path / name, report(name, 64)) for name in ("whole", "bare")]
    (folders[0] / "student").mkdir()
    (folders[0] / "student" / "config.json").write_text("{}")
    runs = read_runs(folders)
    text = to_markdown(comparison(runs, "t", {}), "figures")
    assert f'AutoModelForMaskedLM.from_pretrained("{folders[0]}/student")' in text
    assert "bare/student" not in text
    assert models_of(runs) == {"whole": str(folders[0] / "student")}
    with pytest.raises(HomodistilError, match="has a student"):
        models_of(runs[1:])


@pytest.mark.parametrize(("method", "taught"), [("homodistil", True), ("mixkd", True), ("finetune", False)])
def test_a_teacher_is_timed_only_where_it_had_a_part(method: str, taught: bool, tmp_path: Path) -> None:
    for name in ("teacher", "run/student"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "run" / "report.json").write_text(json.dumps(report("run", 64, method=method)))
    (tmp_path / "run" / "run_config.json").write_text(json.dumps({"teacher": str(tmp_path / "teacher")}))
    its = {f"teacher {tmp_path / 'teacher'}": str(tmp_path / "teacher")} if taught else {}
    assert models_of(read_runs([tmp_path / "run"])) == {**its, "run": str(tmp_path / "run" / "student")}


def test_latency_is_in_milliseconds_and_sequences(language: list[LanguageRun]) -> None:
    page = comparison(language, "t", {}, Latency(labels=["half", "small"], measured=MEASURED))
    table, conditions = page.sections["Latency"]
    assert isinstance(table, Table)
    assert list(table.rows) == [
        ["half", "20.00", "50.0", "400.00", "80.0"],
        ["small", "10.00", "100.0", "200.00", "160.0"],
    ]
    assert isinstance(conditions, Line)
    assert "2 thread(s), 128 tokens" in conditions.text


class Tags(html.parser.HTMLParser):
    """The tags and the text of a page, as a browser sees them."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attributes if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def test_what_a_file_says_stays_text_in_html_and_markdown(tmp_path: Path) -> None:
    hostile = report(HOSTILE, 64, method=HOSTILE, versions={HOSTILE: HOSTILE})
    runs = read_runs(
        [write(tmp_path / "a", hostile, {HOSTILE: 1}), write(tmp_path / "b", report("b", 64), {HOSTILE: 2})]
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for figure in comparison_figures(runs).values():
            figure.canvas.draw()  # type: ignore[attr-defined]
    page = comparison(runs, HOSTILE, {"sizes": HOSTILE})
    seen = Tags(to_html(page, {"sizes": b"png"}))
    assert "script" not in seen.tags
    assert seen.links == ["data:image/png;base64,cG5n"], "nothing is fetched"
    assert sum(text == HOSTILE for text in seen.texts) >= 6
    markdown = to_markdown(page, "figures")
    assert "<script>" not in markdown
    assert not re.search(r"(?<!\\)\[a\]", markdown)
    for table in (part for part in markdown.split("\n\n") if part.startswith("| ")):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, "no text breaks a row"


def test_tables_align_numbers_right_and_code_cannot_end_early() -> None:
    blocks = [Table(header=["a", "b"], rows=[["x", "1"]]), Code("one\n```\n</code>two")]
    page = Page(title="t", sections={"s": blocks})
    text, markup = to_markdown(page, "figures"), to_html(page, {})
    assert "| :-- | --: |" in text
    assert "    ```\n" in text
    assert '<td>x</td><td class="n">1</td>' in markup
    assert "&lt;/code&gt;two" in markup
    assert "prefers-color-scheme: dark" in markup


def test_figures_show_what_there_is(language: list[LanguageRun], task: TaskRun, tmp_path: Path) -> None:
    drawn = comparison_figures([*language, task])
    assert set(drawn) == {"progress", "losses", "sizes"}
    held_out, kl, width = drawn["progress"].axes
    assert list(held_out.lines[0].get_xdata()) == [200, 300], "the report's own figure ends the curve"
    assert list(held_out.lines[0].get_ydata()) == [3.75, 3.5]
    assert list(kl.lines[1].get_ydata()) == [0.5, 0.25]
    assert list(width.lines[1].get_ydata()) == [256, 64, 64]
    assert {axes.get_title(loc="left") for axes in drawn["losses"].axes} == {"total", "mlm", "loss", "accuracy"}
    rows = zip((0.5, 0.25), (40, 16), (3.25, None), strict=True)
    grown = [{"scale": scale, "parameters": size, "heldout_loss": loss} for scale, size, loss in rows]
    many = write(tmp_path / "many", report("many", 64, family=grown))
    scored = [{"scale": 0.5, "parameters": 7, "score": 0.75, "trade_off": 0.85}]
    trial = TASK | {"family": scored, "metrics": {"held_out": {"accuracy": 0.8}}}
    nested = write(tmp_path / "nested", TASK | {"family": scored})
    runs = read_runs([many, nested, write(tmp_path / "trial", trial)])
    losses, scores, others = comparison_figures(runs)["families"].axes
    assert list(losses.lines[0].get_ydata()) == [3.25], "what has no value is left out"
    assert list(scores.lines[0].get_ydata()) == [0.75]
    assert (len(scores.lines), len(others.lines)) == (1, 1), "scores of different splits do not share a panel"
    table = comparison(runs, "t", {}).sections["Families"][0]
    assert isinstance(table, Table)
    many_rows = [["many", "-", "0.5", "40"], ["many", "-", "0.25", "16"]]
    assert [row[:4] for row in table.rows[:3]] == [*many_rows, [runs[1].label, "sst2 validation, train", "0.5", "7"]]
    assert table.rows[3][1] == "sst2 held_out"
    still = [{"step": step, "loss": 1.0 / step, "kept_hidden": 64} for step in (1, 2)]
    (unpruned,) = read_runs([write(tmp_path / "still", TASK | {"history": still})])
    assert set(comparison_figures([unpruned])) == {"losses"}, "one width for all is no curve"
    empty = read_runs([write(tmp_path / "empty", TASK | {"history": []})])
    assert comparison_figures(empty) == {}


DAMAGE = {
    "cut off": lambda text: text[:40],
    "a list": lambda _: "[]",
    "no student": lambda text: text.replace('"student"', '"pupil"'),
    "a text for a number": lambda text: text.replace('"steps": 300', '"steps": "many"'),
    "a word in the history": lambda text: text.replace('"total": 9.0', '"total": "nine"'),
    "a history that is none": lambda text: text.replace('"history": [', '"history": 3, "rest": ['),
    "not UTF-8": lambda text: text.encode() + b"\xff",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_report_is_named(kind: str, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole", report("whole", 64))
    path = write(tmp_path / "broken", report("broken", 64)) / "report.json"
    damaged = DAMAGE[kind](path.read_text(encoding="utf-8"))
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    with pytest.raises(HomodistilError, match=r"broken/report\.json is damaged") as raised:
        read_runs([whole, path.parent])
    assert raised.value.error_id == "DATA-REPORT"


def test_a_missing_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(HomodistilError, match=r"none/report\.json is missing"):
        read_runs([tmp_path / "none"])
