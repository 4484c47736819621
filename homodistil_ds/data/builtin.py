"""The text that every Python installation carries: the reference behind help() and the library's docstrings."""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from pydoc_data import topics

_NOT_DOCUMENTATION = {"test", "tests", "idlelib", "lib2to3", "site-packages", "dist-packages"}


def language_reference() -> Iterator[str]:
    yield from (text for _, text in sorted(topics.topics.items()))


def modules() -> Iterator[Path]:
    """The modules of the standard library, in the same order everywhere."""
    for folder, folders, names in os.walk(Path(sysconfig.get_path("stdlib"))):
        folders[:] = sorted(set(folders) - _NOT_DOCUMENTATION)
        yield from (Path(folder, name) for name in sorted(names) if name.endswith(".py"))


def documentation(module: Path) -> Iterator[str]:
    """One document of a module's docstrings, or none."""
    if text := "\n".join(_docstrings(_parse(module))):
        yield text


def _parse(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in the sources of others
        try:
            return ast.parse(path.read_bytes())
        except (OSError, SyntaxError, ValueError):  # templates and unreadable files are not documentation
            return ast.Module([], [])


def _docstrings(node: ast.AST) -> Iterator[str]:
    documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    if documented and (text := ast.get_docstring(node)):  # type: ignore[arg-type]
        yield text
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.stmt | ast.ExceptHandler):  # expressions hold no docstring, and are most of the tree
            yield from _docstrings(child)
