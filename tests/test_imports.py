"""The floors of the house: imports go down, DeepSpeed is met in one folder, no circles, no rooms without a purpose."""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

import homodistil_ds
from homodistil_ds.models.families import FAMILIES

PACKAGE = Path(homodistil_ds.__file__).parent
ROOT = PACKAGE.name
FACTS = (
    *("errors", "config", "task_config", "machine", "presets", "models.width", "models.families"),
    *(f"models.{name.replace('-', '_')}" for name in FAMILIES),
    *("pruning.schedule", "pruning.family", "pruning.cost", "pruning.milestones", "pruning.criteria"),
)
FLOOR_OF_FOLDER = {
    "runtime": 1,
    "models": 2,
    "pruning": 2,
    "distillation": 2,
    "data": 2,
    "evaluation": 2,
    "planning": 3,
    "methods": 4,
}
FLOOR_OF_MODULE = {"": 0, **dict.fromkeys(FACTS, 0), "stage": 3, "command": 5, "train": 5}


def name_of(path: Path) -> str:
    """Dotted name below the package; '' is the package itself."""
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}


def floor(module: str) -> int:
    folder = module.split(".")[0]
    return FLOOR_OF_MODULE[module] if module in FLOOR_OF_MODULE else FLOOR_OF_FOLDER[folder]


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of the modules that `tree` imports, with the names taken from them, which may be modules too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(tree: ast.AST) -> set[str]:
    """Modules of this package, by their name below it; a package counts if nothing more precise was imported."""
    names = {name.partition(".")[2] for name in imported(tree) if name.split(".")[0] == ROOT}
    names &= set(MODULES)
    return {name for name in names if not any(other != name and other.startswith(f"{name}.") for other in names)}


def test_the_test_sees_the_imports_it_judges() -> None:
    assert {"runtime.ranks", "models.forward", "pruning.pruner"} <= own_imports(MODULES["stage"])
    assert own_imports(MODULES["models.bert"]) == {"models.width"}


@pytest.mark.parametrize("module", MODULES)
def test_every_module_has_a_floor_and_imports_only_from_it_or_below(module: str) -> None:
    above = {other: floor(other) for other in own_imports(MODULES[module]) if floor(other) > floor(module)}
    assert not above, f"{module} is on floor {floor(module)}"


def test_deepspeed_is_imported_in_runtime_only() -> None:
    outside = [
        module
        for module, tree in MODULES.items()
        if not module.startswith("runtime.") and any(name.split(".")[0] == "deepspeed" for name in imported(tree))
    ]
    assert outside == []


def test_facts_import_no_process_group_and_no_model_library() -> None:
    for module in FACTS:
        libraries = {name for name in imported(MODULES[module]) if not name.startswith(ROOT)}
        assert not any(name.startswith(("torch.distributed", "transformers", "datasets")) for name in libraries), module


def test_there_is_no_circle() -> None:
    graph = {module: own_imports(tree) - {module} for module, tree in MODULES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())
    assert set(order) == set(MODULES)


def test_no_import_inside_a_function_dodges_a_circle() -> None:
    for module, tree in MODULES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert not own_imports(node), f"{module}.{node.name}"


def test_no_module_is_named_after_nothing() -> None:
    empty = {"utils", "util", "helpers", "helper", "common", "base", "manager", "managers", "misc"}
    assert not [module for module in MODULES if empty & set(module.split("."))]
