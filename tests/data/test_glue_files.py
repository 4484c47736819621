"""Every task reads the same from official files, parquet and the hub; a bad file is named with its place."""

import gzip
import lzma
import os
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from glue_layouts import FIRST, OFFICIAL, SECOND

from homodistil_ds.data.glue import TASKS, Examples
from homodistil_ds.data.glue_files import NO_SPLIT, check_files, read_split
from homodistil_ds.errors import HomodistilError

SPLITS = [(name, split) for name, task in TASKS.items() for split in task.splits]


def write(path: Path, text: str | bytes) -> Path:
    """Compress as the suffix of `path` says; make its folder."""
    path.parent.mkdir(exist_ok=True)
    content = text if isinstance(text, bytes) else text.encode()
    path.write_bytes({".gz": gzip.compress, ".xz": lzma.compress}.get(path.suffix, bytes)(content))
    return path


def hub_table(name: str, split: str) -> pa.Table:
    """The hub's columns; test labels are -1 there, but for those of MRPC."""
    task, numbers = TASKS[name], OFFICIAL[name].numbers
    if split.startswith("test") and name != "MRPC":
        numbers = (-1, -1, -1)
    kind = pa.int64() if task.classes else pa.float32()
    texts = dict(zip(task.hub_texts, (list(FIRST), list(SECOND)), strict=False))
    return pa.table({**texts, "label": pa.array(numbers, kind), "idx": pa.array([40, 41, 42], pa.int32())})


def check(examples: Examples, name: str, split: str, indices: list[int]) -> None:
    task = TASKS[name]
    assert len(examples) == 3
    assert examples.first == FIRST
    assert examples.second == (SECOND if len(task.texts) == 2 else None)
    assert examples.indices.dtype == np.int64
    assert examples.indices.tolist() == indices
    assert examples.skipped == 0
    if split.startswith("test"):
        assert examples.labels is None
    else:
        assert examples.labels is not None
        assert examples.labels.dtype == (np.int64 if task.classes else np.float32)
        assert examples.labels.tolist() == list(OFFICIAL[name].numbers)


def fault(data: Path | str, name: str, split: str = "train") -> HomodistilError:
    with pytest.raises(HomodistilError) as caught:
        read_split(str(data), TASKS[name], split)
    assert caught.value.exit_code == 4
    assert caught.value.remedy
    return caught.value


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_official_files(tmp_path: Path, name: str, split: str, packed: str) -> None:
    official = OFFICIAL[name]
    write(tmp_path / name / f"{split}.tsv{packed}", official.file(split))
    counted = not (official.has_index or split.startswith("test"))
    check(read_split(str(tmp_path), TASKS[name], split), name, split, [0, 1, 2] if counted else [40, 41, 42])


@pytest.mark.parametrize("name", TASKS)
def test_the_last_row_may_end_early_and_rows_may_end_in_crlf(tmp_path: Path, name: str) -> None:
    split, text = TASKS[name].evaluation[0], OFFICIAL[name].file("dev")
    write(tmp_path / name / f"{split}.tsv", text)
    whole = read_split(str(tmp_path), TASKS[name], split)
    for other in (text.removesuffix("\n"), text.replace("\n", "\r\n")):
        write(tmp_path / name / f"{split}.tsv", other)
        found = read_split(str(tmp_path), TASKS[name], split)
        assert (found.first, found.second) == (whole.first, whole.second)
        np.testing.assert_array_equal(found.labels, whole.labels)


def test_what_a_run_would_miss_is_named_before_it_starts(tmp_path: Path) -> None:
    task = TASKS["MNLI"]
    (tmp_path / "MNLI").mkdir()
    for split in ("train", *task.evaluation):
        with pytest.raises(HomodistilError, match=f"no file of the split '{split}'"):
            check_files(str(tmp_path), task)
        (tmp_path / "MNLI" / f"{split}.tsv").touch()
    check_files(str(tmp_path), task)
    with pytest.raises(HomodistilError, match="one folder of the task RTE is expected"):
        check_files(str(tmp_path), TASKS["RTE"])


def test_five_annotators_in_the_evaluation_files_of_mnli(tmp_path: Path) -> None:
    text = OFFICIAL["MNLI"].file("dev_matched").replace("label1", "label1\tlabel2\tlabel3\tlabel4\tlabel5")
    text = text.replace("\tneutral\t", "\tneutral" + "\tneutral\tentailment\t\t" + "neutral\t")
    write(tmp_path / "MNLI" / "dev_matched.tsv", text)
    check(read_split(str(tmp_path), TASKS["MNLI"], "dev_matched"), "MNLI", "dev_matched", [40, 41, 42])


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    write(tmp_path / "RTE" / "dev.tsv", "label\tsentence2\tmore\tsentence1\nentailment\tb\t-\ta\n")
    examples = read_split(str(tmp_path), TASKS["RTE"], "dev")
    assert (examples.first, examples.second, examples.indices.tolist()) == (("a",), ("b",), [0])


@pytest.mark.parametrize("folder", ["SST-2", "sst2", "SST2", "sst-2"])
def test_folders_in_any_spelling(tmp_path: Path, folder: str) -> None:
    write(tmp_path / folder / "dev.tsv", OFFICIAL["SST-2"].file("dev"))
    assert len(read_split(str(tmp_path), TASKS["SST-2"], "dev")) == 3


@pytest.mark.parametrize("layout", ["own", "hub", "pieces"])
@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_parquet(tmp_path: Path, name: str, split: str, layout: str) -> None:
    folder, table, hub_split = (
        tmp_path / TASKS[name].hub_name,
        hub_table(name, split),
        split.replace("dev", "validation"),
    )
    folder.mkdir()
    if layout == "pieces":
        pq.write_table(table[:1], folder / f"{hub_split}-00000-of-00002.parquet")
        pq.write_table(table[1:], folder / f"{hub_split}-00001-of-00002.parquet")
    else:
        pq.write_table(
            table, folder / (f"{split}.parquet" if layout == "own" else f"{hub_split}-00000-of-00001.parquet")
        )
    check(read_split(str(tmp_path), TASKS[name], split), name, split, [40, 41, 42])


@pytest.mark.parametrize(("name", "split"), SPLITS)
def test_the_hub(monkeypatch: pytest.MonkeyPatch, name: str, split: str) -> None:
    asked = []

    def load_dataset(path: str, configuration: str, split: str) -> datasets.Dataset:
        asked.append((path, configuration, split))
        return datasets.Dataset(hub_table(name, split))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    check(read_split("nyu-mll/glue", TASKS[name], split), name, split, [40, 41, 42])
    assert asked == [("nyu-mll/glue", TASKS[name].hub_name, split.replace("dev", "validation"))]


def test_an_unreachable_hub_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(path: str, *_: object, **__: object) -> None:
        raise ConnectionError(f"Couldn't reach {path}")

    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    error = fault("owner/name", "RTE")
    assert error.error_id == "DATA-GLUE"
    assert "Couldn't reach owner/name" in error.what


def test_short_rows_of_qqp_are_skipped_and_counted_but_not_in_its_test_file(tmp_path: Path) -> None:
    header, *rows = OFFICIAL["QQP"].file("train").removesuffix("\n").split("\n")
    cut = ['50\t1\t2\tWhy?\t"What is', 'this?"\t0']
    path = write(tmp_path / "QQP" / "train.tsv", "\n".join([header, rows[0], *cut, *rows[1:]]) + "\n")
    examples = read_split(str(tmp_path), TASKS["QQP"], "train")
    assert (examples.first, examples.skipped, examples.indices.tolist()) == (FIRST, 2, [40, 41, 42])
    write(path, "\n".join([header, *rows, "50\t1\t2\ta\tb\t0\tmore"]))
    assert f"{path}:5: 7 columns instead of 6" in fault(tmp_path, "QQP").what
    write(path, "\n".join([header, *cut]))
    assert "2 short rows" in fault(tmp_path, "QQP").what
    path = write(path.with_name("test.tsv"), OFFICIAL["QQP"].file("test") + "43\tonly one\n")
    assert f"{path}:5: 2 columns instead of 3" in fault(tmp_path, "QQP", "test").what


@pytest.mark.parametrize("name", [name for name in TASKS if name != "QQP"])
def test_a_row_with_a_column_more_or_less_is_named(tmp_path: Path, name: str) -> None:
    text = OFFICIAL[name].file("train")
    line = text.count("\n") + 1
    for bad in (text.split("\n")[-2] + "\tmore", text.split("\n")[-2].rpartition("\t")[0], ""):
        path = write(tmp_path / name / "train.tsv", text + bad + "\n")
        error = fault(tmp_path, name)
        assert error.error_id == "DATA-GLUE"
        assert error.what.startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(("name", "label"), [("RTE", "0"), ("CoLA", "2"), ("MNLI", "-"), ("SST-2", ""), ("STS-B", "x")])
def test_an_unknown_label_is_named(tmp_path: Path, name: str, label: str) -> None:
    official = OFFICIAL[name]
    text = official.file("train") + official.row.format("a", "b", label=label, index=3).replace(" | ", "\t") + "\n"
    path = write(tmp_path / name / "train.tsv", text)
    error = fault(tmp_path, name)
    assert error.error_id == "DATA-GLUE"
    assert error.what.startswith(f"{path}:{text.count(chr(10))}: '{label}' is no label of {name}")


@pytest.mark.parametrize("label", ["5.1", "-1", "nan", "inf"])
def test_a_score_out_of_range_is_no_label(tmp_path: Path, label: str) -> None:
    write(tmp_path / "STS-B" / "train.tsv", OFFICIAL["STS-B"].file("train").replace("2.750", label))
    assert f"'{label}' is no label of STS-B (0 to 5)" in fault(tmp_path, "STS-B").what


def test_an_index_that_is_no_number_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "WNLI" / "train.tsv", OFFICIAL["WNLI"].file("train").replace("41\t", "4l\t"))
    assert fault(tmp_path, "WNLI").what.startswith(f"{path}:3: '4l' in column 'index'")


@pytest.mark.parametrize(("name", "column"), [("SST-2", "label"), ("MRPC", "#2 String"), ("MNLI", "gold_label")])
def test_a_missing_column_lists_the_others(tmp_path: Path, name: str, column: str) -> None:
    path = write(tmp_path / name / "train.tsv", OFFICIAL[name].file("train").replace(column, "other"))
    error = fault(tmp_path, name)
    assert error.error_id == "DATA-GLUE"
    assert error.what.startswith(f"{path}: no column '{column}'")
    assert "other" in error.what


@pytest.mark.parametrize("packed", ["", ".gz", ".xz"])
@pytest.mark.parametrize(("name", "text"), [("CoLA", ""), ("RTE", ""), ("RTE", OFFICIAL["RTE"].header + "\n")])
def test_a_file_without_examples_is_named(tmp_path: Path, name: str, text: str, packed: str) -> None:
    path = write(tmp_path / name / f"train.tsv{packed}", text.replace(" | ", "\t"))
    error = fault(tmp_path, name)
    assert error.error_id == "DATA-GLUE"
    assert error.what.startswith(f"{path}: ")


@pytest.mark.parametrize("suffix", [".tsv.gz", ".tsv.xz", ".tsv.zst", ".parquet"])
def test_a_damaged_file_is_named(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / "RTE" / "train.tsv", "")
    path = path.rename(path.with_name(f"train{suffix}"))
    for content in (b"", b"neither compressed nor parquet"):
        path.write_bytes(content)
        error = fault(tmp_path, "RTE")
        assert error.error_id == "DATA-GLUE"
        assert error.what.startswith(f"{path}: ")


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "CoLA" / "train.tsv", b"x\t1\t\tfine\nx\t1\t\tcaf\xe9\n")
    error = fault(tmp_path, "CoLA")
    assert error.error_id == "DATA-NOT-UTF8"
    assert f"{path}: byte 0xe9" in error.what
    assert "line 2" in error.what


def test_missing_folders_files_and_splits_are_named(tmp_path: Path) -> None:
    assert "no such folder" in fault(tmp_path / "nowhere", "RTE").what
    assert "task RTE is expected, found none" in fault(tmp_path, "RTE").what
    (tmp_path / "RTE").mkdir()
    error = fault(tmp_path, "RTE", "dev")
    assert error.error_id == NO_SPLIT
    assert f"{tmp_path / 'RTE'}: no file of the split 'dev'" in error.what
    assert "dev.tsv.xz" in error.remedy
    assert "dev_matched" in fault(tmp_path, "MNLI", "dev").remedy
    (tmp_path / "rte").mkdir()
    assert "found RTE and rte" in fault(tmp_path, "RTE", "dev").what


def test_missing_pieces_of_parquet_are_named(tmp_path: Path) -> None:
    (tmp_path / "rte").mkdir()
    pq.write_table(hub_table("RTE", "train"), tmp_path / "rte" / "train-00000-of-00002.parquet")
    assert "not whole, found train-00000-of-00002.parquet" in fault(tmp_path, "RTE").what


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"sentence1": ["a"], "label": [1]}, "no column 'sentence2'; its columns: sentence1 (string), label (int64)"),
        ({"sentence1": ["a"], "sentence2": [2], "label": [1]}, "no column 'sentence2'"),
        ({"sentence1": ["a"], "sentence2": ["b"]}, "no column 'label'"),
        ({"sentence1": ["a"], "sentence2": ["b"], "label": [1], "idx": ["x"]}, "no column 'idx'"),
        ({"sentence1": ["a"], "sentence2": [None], "label": [1]}, "'sentence2'"),
        ({"sentence1": ["a", "b"], "sentence2": ["c", None], "label": [1, 1]}, "empty cells in column 'sentence2'"),
        ({"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [1, 2]}, "row 1: '2' is no label of RTE"),
        ({"sentence1": ["a"], "sentence2": ["b"], "label": [-1]}, "row 0: '-1' is no label of RTE"),
        ({"sentence1": ["a"], "sentence2": ["b"], "label": ["entailment"]}, "row 0: 'entailment' is no label"),
        ({"sentence1": pa.array([], "string"), "sentence2": pa.array([], "string"), "label": []}, "no example in it"),
    ],
)
def test_parquet_of_another_kind_is_named(tmp_path: Path, columns: dict[str, object], said: str) -> None:
    (tmp_path / "rte").mkdir()
    path = tmp_path / "rte" / "train.parquet"
    pq.write_table(pa.table(columns), path)
    error = fault(tmp_path, "RTE")
    assert error.error_id == "DATA-GLUE"
    assert error.what.startswith(str(path))
    assert said in error.what


REAL = os.environ.get("HOMODISTIL_GLUE", "")
# Task, split, examples, examples of each class.
COUNTS = [
    ("CoLA", "train", 8551, [2528, 6023]),
    ("CoLA", "dev", 1043, [322, 721]),
    ("CoLA", "test", 1063, None),
    ("SST-2", "train", 67349, [29780, 37569]),
    ("SST-2", "dev", 872, [428, 444]),
    ("SST-2", "test", 1821, None),
    ("MRPC", "train", 3668, [1194, 2474]),
    ("MRPC", "dev", 408, [129, 279]),
    ("MRPC", "test", 1725, None),
    ("QNLI", "dev", 5463, [2702, 2761]),
    ("QNLI", "test", 5463, None),
    ("WNLI", "train", 635, [323, 312]),
    ("WNLI", "dev", 71, [40, 31]),
    ("WNLI", "test", 146, None),
]


@pytest.mark.skipif(not REAL, reason="HOMODISTIL_GLUE names no folder of GLUE files")
@pytest.mark.parametrize(("name", "split", "rows", "classes"), COUNTS)
def test_the_real_files(name: str, split: str, rows: int, classes: list[int] | None) -> None:
    examples = read_split(REAL, TASKS[name], split)
    assert len(examples) == rows
    assert all(examples.first)
    assert examples.indices.tolist() == list(range(rows))
    assert (None if examples.labels is None else np.bincount(examples.labels).tolist()) == classes
