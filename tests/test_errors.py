"""Messages that stop a run: one shape, one exit code per family, whole after a journey between processes."""

import ast
import pickle
from pathlib import Path

import pytest

import homodistil_ds
from homodistil_ds.errors import EXIT_CODES, NOTHING_STARTED, HomodistilError, did_you_mean

PACKAGE = Path(homodistil_ds.__file__).parent


def raised() -> list[tuple[str, ast.Call]]:
    """Every HomodistilError that the package makes, with its place."""
    return [
        (f"{path.relative_to(PACKAGE)}:{node.lineno}", node)
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "HomodistilError"
    ]


@pytest.mark.parametrize(("family", "code"), EXIT_CODES.items())
def test_the_family_of_the_id_decides_the_exit_code(family: str, code: int) -> None:
    assert HomodistilError(f"{family}-ANY-THING", "what", "remedy").exit_code == code


def test_exit_codes_are_distinct_and_are_neither_success_nor_a_crash() -> None:
    assert len(set(EXIT_CODES.values())) == len(EXIT_CODES)
    assert not {0, 1} & set(EXIT_CODES.values())


def test_every_error_of_the_package_has_an_id_of_a_known_family_and_a_remedy() -> None:
    calls = raised()
    assert len(calls) > 20
    for place, call in calls:
        identifier = call.args[0]
        assert isinstance(identifier, ast.Constant), place
        assert str(identifier.value).split("-")[0] in EXIT_CODES, place
        assert identifier.value == str(identifier.value).upper(), place
        assert len(call.args) + len(call.keywords) >= 3, place


def test_the_block_holds_id_what_remedy_and_what_was_kept_each_on_its_own_lines() -> None:
    error = HomodistilError("DATA-EMPTY", "nothing in it", "Do this.\nThen that.", "All kept.")
    assert error.block().splitlines() == [
        "homodistil_ds: error[DATA-EMPTY] nothing in it",
        "  Do this.",
        "  Then that.",
        "  All kept.",
    ]
    assert HomodistilError("CFG-X", "what", "remedy").block().endswith(f"  {NOTHING_STARTED}")


def test_an_error_survives_the_way_to_another_rank() -> None:
    error = HomodistilError("CKPT-X", "what", "remedy", "kept")
    error.kept += "\nThis happened on ranks [1] of 2."
    copy = pickle.loads(pickle.dumps(error))
    assert (type(copy), copy.block(), copy.exit_code) == (HomodistilError, error.block(), error.exit_code)


def test_did_you_mean_names_the_nearest_and_always_all() -> None:
    known = ("steps", "seed", "teacher")
    assert did_you_mean("step", known) == "Did you mean 'steps'?\nKnown names: seed, steps, teacher."
    assert did_you_mean("qqqqqq", known) == "Known names: seed, steps, teacher."
