"""Files of results that are parts of another one: those of bins of positions, and those with other anchors.

`NAME.csv` and `NAME.parquet` hold their table, `NAME.safetensors` the tensors of each part under its name ("2-3/mass"),
and the entry `NAME` of `result.json` the rest. Versions that do not know them leave them alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softh_probe.errors import short_repr
from softh_probe.files import write_bytes
from softh_probe.hashing import bytes_sha256
from softh_probe.result_files import checked, damaged, write_table

if TYPE_CHECKING:
    import pandas as pd

    from softh_probe.result import ProbeResult


@dataclass(frozen=True, kw_only=True)
class PartFiles:
    """Writes and reads the parts of one kind.

    Attributes:
        name: of the files, and of the entry of `result.json`.
        key: of the parts in that entry.
        own: entries of a part's `info` that are its own, with their types; None where it may be missing.
        shared: those that are the result's.
        check: raises ValueError where the heads of parts are none.
    """

    name: str
    key: str
    own: Mapping[str, type | None]
    shared: tuple[str, ...]
    check: Callable[[Mapping[str, Mapping[str, Any]]], None]

    @property
    def files(self) -> tuple[str, str, str]:
        """Names of all files: tensors, and the table twice."""
        return f"{self.name}.safetensors", f"{self.name}.csv", f"{self.name}.parquet"

    def write(
        self, folder: Path, parts: Mapping[str, ProbeResult], table: Callable[[], pd.DataFrame]
    ) -> tuple[dict[str, str], dict[str, Any]]:
        """Write the files of parts, or remove those of an earlier result where there are none.

        Returns:
            The SHA-256 of each file by its name, and the entries of `result.json`.
        """
        from safetensors.torch import save

        if not parts:
            for name in self.files:
                (folder / name).unlink(missing_ok=True)
            return {}, {}
        folder.mkdir(parents=True, exist_ok=True)
        sums, csv, parquet = self.files
        content = save(
            {f"{name}/{key}": tensor.contiguous() for name, one in parts.items() for key, tensor in one.tensors.items()}
        )
        write_bytes(folder / sums, content)
        files = {sums: bytes_sha256(content), **write_table(folder, table(), csv, parquet)}
        described = {
            name: {
                "label_sets": one.label_sets,
                "labels": one.labels,
                **{key: one.info[key] for key in self.own if key in one.info},
            }
            for name, one in parts.items()
        }
        return files, {self.name: {"sha256": files[sums], self.key: described}}

    def read(
        self, make: Callable[..., ProbeResult], folder: Path, info: dict[str, Any], rows: list[str]
    ) -> dict[str, ProbeResult]:
        """Read what `write` wrote.

        Args:
            make: `ProbeResult`.
            folder: the result's folder.
            info: the content of `result.json`, of which the entry of the parts is taken out.
            rows: names of the result's layers.

        Raises:
            InputError: the files are damaged, were changed, or do not fit the result.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load

        if (entry := info.pop(self.name, None)) is None:
            return {}
        where, (sums, *_) = str(folder), self.files
        parts = self._checked(entry, where)
        try:
            content = (folder / sums).read_bytes()
            if bytes_sha256(content) != entry["sha256"]:
                raise damaged(where, f"{sums} was changed after it was written")
            tensors = load(content)
        except FileNotFoundError as error:
            raise damaged(where, f"{sums} is missing") from error
        except (OSError, SafetensorError) as error:
            raise damaged(where, f"{sums} cannot be read ({error})") from error
        shared = {key: info[key] for key in self.shared if key in info}
        found = {}
        for name, head in parts.items():
            start = f"{name}/"
            of_part = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
            names = {"rows": rows, "label_sets": head.get("label_sets"), "labels": head.get("labels")}
            of_part = checked(names, of_part, where, f"{sums}, {name}")
            names["labels"] = [(label_set, label) for label_set, label in head["labels"]]
            own = {key: head[key] for key in self.own if key in head}
            found[name] = make(**names, tensors=of_part, info={**shared, **own})
        return found

    def _checked(self, entry: Any, where: str) -> dict[str, dict[str, Any]]:
        """Give the heads of the parts by name, in order."""
        parts = entry.get(self.key) if isinstance(entry, dict) else None
        if not isinstance(parts, dict) or not all(isinstance(head, dict) for head in parts.values()):
            raise damaged(where, f"result.json: {self.name}: expected {self.key} by name, got {short_repr(entry)}")
        try:
            self.check(parts)
        except ValueError as error:
            raise damaged(where, f"result.json: {self.name}: {error}") from error
        for name, head in parts.items():
            for key, kind in self.own.items():
                if kind is not None and not isinstance(head.get(key), kind):
                    raise damaged(where, f"result.json: {self.name}: {name}: {key}: got {short_repr(head.get(key))}")
        return parts
