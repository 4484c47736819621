"""Units are a function of the files alone; shares add up to everything."""

from pathlib import Path

import pytest

from homodistil_ds.data import units
from homodistil_ds.data.text import File, read_documents
from homodistil_ds.data.units import Group, clean, digest, groups_of, shares


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("cafe\u0301", "caf\u00e9"),
        ("a  \r\nb\rc\t\n", "a\nb\nc"),
        ("\n\n  indented\n\n\nkept\n ", "  indented\n\n\nkept"),
        ("nul\x00l, form\x0cfeed, bell\x07, \x9fc1", "null, form feed, bell, c1"),
        ("tab\tstays, \u3000wide too", "tab\tstays, \u3000wide too"),
        (" \x00 \n", ""),
    ],
)
def test_cleaning_is_modest(text: str, cleaned: str) -> None:
    assert clean(text) == cleaned
    assert clean(cleaned) == cleaned


def test_digests_tell_texts_apart() -> None:
    assert digest("a") == digest("a") != digest("b")
    assert len(digest("")) == 16


def write(folder: Path, sizes: list[int]) -> list[File]:
    files = []
    for number, size in enumerate(sizes):
        path = folder / f"{number:03d}.txt"
        path.write_text("\n\n".join(f"{number}-{line}" + "x" * 50 for line in range(size)))
        files.append(File(str(folder), str(path), path.stat().st_size))
    return files


def everything(group: Group) -> list[tuple[int, list[str]]]:
    return [(number, [text for _, text in texts]) for number, texts in group.units(lambda _: True)]


def test_groups_and_units_keep_all_documents_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_CHARACTERS", 400)
    files = write(tmp_path, [3, 1, 1, 0, 40, 2, 2, 2, 2])
    groups = groups_of(files)
    assert [[place for place, _ in group.files] for group in groups] == [[0, 1, 2, 3], [4], [5, 6, 7], [8]]
    units_of = [everything(group) for group in groups]
    assert [[number for number, _ in one] for one in units_of] == [[0], [0, 1, 2, 3, 4], [0], [0]]
    assert [t for one in units_of for _, texts in one for t in texts] == list(read_documents([str(tmp_path)]))


def test_a_unit_is_the_same_whichever_are_wanted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_CHARACTERS", 400)
    (group,) = groups_of(write(tmp_path, [60]))
    whole = dict(everything(group))
    some = {number: [text for _, text in texts] for number, texts in group.units(lambda n: n % 3 == 1)}
    assert some.keys() == whole.keys()
    assert all(texts == (whole[number] if number % 3 == 1 else []) for number, texts in some.items())


def test_a_bad_file_changes_no_other_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(units, "UNIT_CHARACTERS", 400)
    files = write(tmp_path, [3, 1, 1, 40, 2])
    all_of_them, without = groups_of(files), groups_of(files, {1, 3})
    assert [place for group in without for place, _ in group.files] == [0, 2, 4]
    assert without[2] == all_of_them[2]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64])
@pytest.mark.parametrize("weights", [[1], [10, 1, 500, 3, 3, 3], [7] * 100])
def test_shares_add_up_to_everything_once(weights: list[int], size: int) -> None:
    everyone = [shares(weights, rank, size) for rank in range(size)]
    for group in range(len(weights)):
        for unit in range(50):
            assert sum(own[group] is not None and own[group].has(unit) for own in everyone) == 1


def test_shares_of_one_large_file_are_even_and_few_files_are_read_twice() -> None:
    for size in (2, 3, 4):
        counts = [sum(own.has(unit) for unit in range(60)) for own in (shares([5], r, size)[0] for r in range(size))]
        assert max(counts) - min(counts) <= 3
    read = sum(own is not None for rank in range(8) for own in shares([3] * 101, rank, 8))
    assert read <= 101 + 7
