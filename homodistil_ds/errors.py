"""The one shape of a message that stops a run, and its exit codes. It prints nothing itself."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_CODES = {"CFG": 2, "ENV": 3, "DATA": 4, "CKPT": 5, "NUM": 6, "DIST": 7, "STOP": 75}
# What one rank may raise while the others know nothing of it: it speaks for itself.
ALONE = frozenset({"DIST-LOST-RANK", "ENV-GPU", "CKPT-CACHE-ROW"})
NOTHING_STARTED = "Nothing was started, nothing was changed."


class HomodistilError(Exception):
    """A fault the user can act on.

    `error_id` starts with the family that decides the exit code (CFG-UNKNOWN-KEY leaves with 2); `what` says what is
    wrong and where, `remedy` what to do next, `kept` what happened to earlier work, `step` the last step done, if any.
    """

    def __init__(
        self, error_id: str, what: str, remedy: str, kept: str = NOTHING_STARTED, step: int | None = None
    ) -> None:
        super().__init__(what)
        self.error_id = error_id
        self.what = what
        self.remedy = remedy
        self.kept = kept
        self.step = step

    def __reduce__(self) -> tuple[type[HomodistilError], tuple[str, str, str, str, int | None]]:
        return HomodistilError, (self.error_id, self.what, self.remedy, self.kept, self.step)

    @property
    def exit_code(self) -> int:
        return EXIT_CODES[self.error_id.split("-", 1)[0]]

    def block(self) -> str:
        """The message as printed: one block of indented lines."""
        body = [line for part in (self.remedy, self.kept) for line in part.splitlines()]
        return "\n".join([f"homodistil_ds: error[{self.error_id}] {self.what}", *(f"  {line}" for line in body)])


def require(name: str, value: object, holds: bool, remedy: str) -> None:
    """Raises HomodistilError CFG-RANGE unless the value of the setting `name` may be what it is."""
    if not holds:
        raise HomodistilError("CFG-RANGE", f"{name}: {value}", remedy)


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The remedy for a misspelt name: the nearest known one, then all of them."""
    known = sorted(known)
    nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    guess = f"Did you mean '{nearest[0]}'?\n" if nearest else ""
    return f"{guess}Known names: {', '.join(known)}."
