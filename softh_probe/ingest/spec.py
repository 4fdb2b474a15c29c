"""What all files of a folder hold, as it is told or as most of them say: layout, rows and their widths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softh_probe.choices import Choices
from softh_probe.errors import InputError, abbreviated, one_line
from softh_probe.ingest.arrays import Arrays, open_arrays
from softh_probe.ingest.config import IngestConfig
from softh_probe.ingest.damage import DamagedFileError, Skipped
from softh_probe.ingest.files import ListedFile
from softh_probe.ingest.layouts import (
    AXES_IN_WORDS,
    HIDDEN_STATES,
    LAYOUTS,
    LayoutName,
    StoredStates,
    count_layers,
    find_layout,
    read_states,
    row_keys,
)
from softh_probe.ingest.row_names import require_order_of_vllm, row_names, rows_said
from softh_probe.layer_places import in_model_order, is_of_a_model
from softh_probe.run.feed import evenly_chosen

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

#: Files that decide what nobody tells.
_MOST_SEEN = 64


@dataclass(frozen=True, kw_only=True)
class Spec:
    """What each file has to hold.

    Attributes:
        layout: the layout.
        rows: the layers, in the order of the files.
        widths: of the rows' hidden states.
        first: the first file that holds this.
        layout_is_told, layers_are_told: whether the user, or the files' keys, say so; else each file has to.
    """

    layout: LayoutName
    rows: tuple[str, ...]
    widths: dict[str, int]
    first: str
    layout_is_told: bool
    layers_are_told: bool

    @contextmanager
    def open(self, file: ListedFile) -> Iterator[StoredStates]:
        """Open a file, and check all that costs no reading of states.

        Raises:
            DamagedFileError: it holds something else, or cannot be read.
        """
        require_unchanged(file)
        with open_arrays(file.path) as arrays:
            layout, rows = _said(file, arrays)
            if layout not in (None, self.layout):
                raise DamagedFileError("layout", f"it says that its layout is {layout}, expected {self.layout}")
            if rows is not None and (set(rows) if self.layout == "rows" else rows) != (
                set(self.rows) if self.layout == "rows" else self.rows
            ):
                raise DamagedFileError(
                    "layers",
                    f"it says that its layers are {abbreviated(rows, 6)}, expected {abbreviated(self.rows, 6)}",
                )
            if not self.layout_is_told and (layout or find_layout(arrays)) is None:
                raise DamagedFileError("layout", "it does not say what its layout is, as others do; give --layout")
            if not self.layers_are_told and rows is None:
                raise DamagedFileError("layers", "it does not say which layers it holds, as others do; give --layers")
            states = read_states(arrays, self.layout, self.rows)
            if states.widths != self.widths:
                name = next(name for name, width in states.widths.items() if width != self.widths[name])
                raise DamagedFileError(
                    "width", f"{name}: expected width {self.widths[name]}, got {states.widths[name]}"
                )
            arrays.check()
            yield states

    def to_json(self) -> dict[str, Any]:
        """Convert to JSON values, as results and snapshots carry them."""
        return {"layout": self.layout, "rows": list(self.rows), "widths": dict(self.widths)}


def settle(config: IngestConfig, files: Sequence[ListedFile], choices: Choices) -> Spec:
    """Decide what all files have to hold: by what is told, and by what most of some files hold, evenly chosen.

    Args:
        config: what is told.
        files: the files, in their order.
        choices: takes what the files decided.

    Raises:
        InputError: nobody tells layout or layers, or no file can be read.
    """
    found: list[Spec] = []
    untold: InputError | None = None
    for group in (evenly_chosen(files, _MOST_SEEN), files):
        skipped = Skipped()
        for file in group:
            try:
                require_unchanged(file)
                with open_arrays(file.path) as arrays:
                    found.append(_settled(config, file, arrays))
            except DamagedFileError as error:
                skipped.add(file.name, error)
            except InputError as error:
                untold = untold or error
            if group is files and (found or untold):
                break
        if found or untold:
            break
    if not found:
        raise untold or InputError(f"folder: none of {skipped.n:,} files can be read: {skipped.reasons()}")
    counts = Counter(map(_key, found))
    (most, n), *_ = counts.most_common(1)
    chosen = next(spec for spec in found if _key(spec) == most)
    _tell(config, chosen, choices, is_certain=n == len(found))
    return chosen


def _key(spec: Spec) -> tuple[object, ...]:
    return spec.layout, spec.rows, tuple(spec.widths.items())


def _settled(config: IngestConfig, file: ListedFile, arrays: Arrays) -> Spec:
    said_layout, said_rows = _said(file, arrays)
    layout = config.layout or said_layout or find_layout(arrays)
    if layout is None:
        shape = list(arrays.shapes[HIDDEN_STATES])
        ways = " or ".join(f"{axes} (--layout {name})" for name, axes in AXES_IN_WORDS.items())
        raise InputError(f"layout: {HIDDEN_STATES} of {file.name} is {shape}, and nobody says whether that is {ways}")
    rows = row_names(config.layers) if config.layers is not None else said_rows
    if rows is None and layout == "rows":
        rows = tuple(in_model_order(row_keys(arrays))[0])
    if rows is None and layout != "rows":
        n_layers = count_layers(arrays, layout)
        raise InputError(
            f"layers: {HIDDEN_STATES} of {file.name} has {n_layers} layers, and nobody says which ones these are; name "
            "them in their order by --layers, as in --layers 2,18,33 (vLLM: eagle_aux_hidden_state_layer_ids; 0 is the "
            "embeddings, k the output of block k)"
        )
    assert rows is not None
    if layout == "vllm":
        require_order_of_vllm(rows)
    states = read_states(arrays, layout, rows)
    return Spec(
        layout=layout,
        rows=rows,
        widths=states.widths,
        first=one_line(file.name),
        layout_is_told=config.layout is not None,
        layers_are_told=config.layers is not None or layout == "rows",
    )


def _tell(config: IngestConfig, spec: Spec, choices: Choices, *, is_certain: bool) -> None:
    """Record what the files decided, and how numbers of layers were read."""
    files = f"{spec.first} and all that were looked at" if is_certain else f"{spec.first} and most that were looked at"
    listed = abbreviated(spec.rows, 8)
    if not spec.layout_is_told:
        choices.add("layout", spec.layout, f"of {files}; --layout names another", certain=is_certain)
    if config.layers is None:
        choices.add("layers", listed, f"of {files}; --layers names others", certain=is_certain)
    elif any(isinstance(one, int) or not is_of_a_model(one) for one in config.layers):
        reason = "number k is the output of block k before any final norm, 0 the embeddings, as vLLM counts"
        choices.add("layers", listed, reason, certain=True)
    widths = ", ".join(map(str, dict.fromkeys(spec.widths.values())))
    choices.add("width", widths, f"that of {files}", certain=is_certain)


def _said(file: ListedFile, arrays: Arrays) -> tuple[LayoutName | None, tuple[str, ...] | None]:
    """Read what the manifest, or else the file, says of layout and layers."""
    facts = {**arrays.facts, **file.facts}
    found = None
    if "layout" in facts:
        found = next((name for name in LAYOUTS if name == facts["layout"]), None)
        if found is None:
            raise DamagedFileError(
                "layout", f"layout: expected one of {', '.join(LAYOUTS)}, got {facts['layout'][:80]!r}"
            )
    if "layers" not in facts:
        return found, None
    try:
        return found, rows_said(facts["layers"])
    except InputError as error:
        raise DamagedFileError("layers", str(error)) from error


def require_unchanged(file: ListedFile) -> None:
    """Refuse a file that is not there, has changed since it was listed, or is still being written.

    vLLM holds a lock on a companion file NAME.lock while it writes.
    """
    try:
        stat = file.path.stat()
        now = stat.st_size, stat.st_mtime_ns
    except OSError as error:
        raise DamagedFileError("unreadable", f"it cannot be read: {error.strerror}") from error
    if now != (file.size, file.mtime_ns):
        raise DamagedFileError("changed", "it changed since the folder was listed; is it still being written?")
    if not file.size:
        raise DamagedFileError("empty", "it is empty")
    if _is_locked(file.path.with_name(f"{file.path.name}.lock")):
        raise DamagedFileError("locked", f"it is being written: {file.path.name}.lock is held")


def _is_locked(lock: Path) -> bool:
    if fcntl is None or not lock.is_file():
        return False
    try:
        with lock.open() as held:
            fcntl.flock(held, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    return False
