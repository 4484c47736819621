"""What a check finds, and how checks are run."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

INSTALL = "Install this program again into its environment: pip install -c constraints.txt -e ."


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the checks look at: the folder that a run would write to; with `fix`, stale locks are removed."""

    output_dir: Path = Path("runs")
    fix: bool = False


@dataclass(frozen=True)
class Finding:
    """`state` is pass, warn (it runs, but slower, or not every way) or fail; `remedy` is empty for a pass."""

    state: str
    found: str
    remedy: str = ""


Check = Callable[[Asked], Finding]


def passed(found: str) -> Finding:
    return Finding("pass", found)


def examine(asked: Asked, checks: Iterable[tuple[str, Check]]) -> dict[str, Finding]:
    """Every check's finding, in order. One that raises is a failed one: a doctor must not die of the patient."""
    findings = {}
    for name, check in checks:
        try:
            findings[name] = check(asked)
        except ModuleNotFoundError as error:
            findings[name] = Finding("fail", f"no module {error.name}", INSTALL)
        except Exception as error:  # a broken library fails in any way it likes
            reason = " ".join(str(error).split())[:200]
            findings[name] = Finding("fail", f"{type(error).__name__}: {reason}", "Mend what this names.")
    return findings
