"""Damaged files: why one is passed over, and the record of those that were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from softh_probe.errors import InputError, one_line

#: Files that a result names one by one.
MOST_NAMED = 100
#: Reasons that a warning gives.
_MOST_REASONS = 3


class DamagedFileError(InputError):
    """A file does not hold what it has to hold, and is passed over.

    Attributes:
        kind: what is wrong, in a word or two, by which such files are counted.
    """

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(reason)
        self.kind = kind


class Skipped:
    """The files that were passed over: the number of each kind, and the first ones with their reasons.

    >>> skipped = Skipped()
    >>> skipped.add("b.npz", DamagedFileError("unreadable", "File is not a zip file"))
    >>> skipped.n, skipped.warnings(of=3)
    (1, ['1 of 3 files was skipped (unreadable 1): b.npz: File is not a zip file'])
    """

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        self.named: list[dict[str, str]] = []

    @property
    def n(self) -> int:
        """Number of files."""
        return self.kinds.total()

    def add(self, name: str, error: DamagedFileError) -> None:
        """Add a file."""
        self.kinds[error.kind] += 1
        if len(self.named) < MOST_NAMED:
            self.named.append({"file": one_line(name), "reason": str(error)})

    def reasons(self) -> str:
        """Give the first files with their reasons."""
        found = [f"{one['file']}: {one['reason']}" for one in self.named[:_MOST_REASONS]]
        more = self.n - len(found)
        return "; ".join(found) + (f"; and {more:,} more" if more else "")

    def warnings(self, of: int) -> list[str]:
        """Say how many files were skipped and why; nothing where none was.

        Args:
            of: the number of all files.
        """
        if not self.n:
            return []
        counts = ", ".join(f"{kind} {n:,}" for kind, n in self.kinds.most_common())
        were = "files was" if self.n == 1 else "files were"
        return [f"{self.n:,} of {of:,} {were} skipped ({counts}): {self.reasons()}"]

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values, as results and snapshots carry them."""
        return {"skipped": self.n, "skipped_by_kind": dict(self.kinds), "skipped_files": list(self.named)}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Skipped:
        """Restore what `to_json` gave."""
        made = cls()
        made.kinds.update(values["skipped_by_kind"])
        made.named += values["skipped_files"]
        return made
