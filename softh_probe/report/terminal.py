"""The table of a result on standard output: bars and colours on a terminal, plain columns when piped."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from typing import TextIO

import pandas as pd
from rich.console import Console
from rich.table import Table
from rich.text import Text

from softh_probe.analysis.sites import HEADS, lines_of, of_site
from softh_probe.anisotropy import anisotropy_lines
from softh_probe.report.anchor_words import anchors_line
from softh_probe.report.bit_words import reading_lines
from softh_probe.report.document_chance import chance_lines
from softh_probe.report.extreme_words import one_set_line
from softh_probe.report.facts import policy_lines
from softh_probe.report.label_samples import sample_line
from softh_probe.report.mean_words import mean_lines
from softh_probe.report.position_words import position_line
from softh_probe.report.share_words import share_lines
from softh_probe.report.wide_table import wide_table
from softh_probe.result import ProbeResult

_EIGHTHS = " ▏▎▍▌▋▊▉█"
#: Widest and narrowest bar, in characters.
_MAX_BAR, _MIN_BAR = 10, 3
_NUMBER = 6  # characters of 0.1234


def print_table(result: ProbeResult, file: TextIO | None = None) -> None:
    """Print one line for each layer: entropy and each label set's information, in units of log m.

    On a terminal each value has a bar, on one scale for entropy and one for all informations, coloured unless NO_COLOR
    is set; columns that do not fit are printed below the others. Elsewhere the columns are plain. The mean over layers,
    how values read in anchors and bits, where states point one way, what chance gives for labels of whole documents,
    that labels were sampled, that the spread over anchors is unknown, and which positions count where not all do, is
    said below, elsewhere on standard error.
    """
    file = file or sys.stdout
    notes = [
        *mean_lines(result),
        *reading_lines(result),
        *anisotropy_lines([result]),
        *policy_lines(result),
        *chance_lines(result),
        *share_lines(result),
        *filter(None, [one_set_line([result]), position_line(result), anchors_line(result), sample_line(result)]),
    ]
    if not file.isatty():
        table = wide_table(result)
        print(table.to_string(index=False, float_format=lambda x: f"{x:.4f}"), file=file)
        for line in notes:
            print(line, file=sys.stderr)
        return
    console = Console(file=file, highlight=False, width=shutil.get_terminal_size().columns)
    for site in lines_of(result):
        if len(result.sites) > 1:
            console.print(Text(site.replace("_", " "), "bold underline"))
        _print_blocks(console, wide_table(of_site(result, site)))
    if HEADS in result.sites and len(result.sites) > 1:
        console.print(Text("attention heads: in layers.csv, and as heat maps in the report", "dim"))
    console.print(Text("in units of log m (0 to 1); bars: entropy of 1, information of the highest value", "dim"))
    for line in notes:
        console.print(Text(line, "dim"))


def _print_blocks(console: Console, table: pd.DataFrame) -> None:
    """Print a line for each layer, in blocks of columns that fit the width."""
    values = [column for column in table.columns if column not in ("layer", "name")]
    can_draw = (console.encoding or "").lower().replace("-", "").startswith("utf")
    names = max(len("layer"), *(len(name) for name in table.name))
    for columns, bar in _blocks(values, console.width - names - 2):
        console.print(_block(table, columns, bar if can_draw else 0))


def _blocks(columns: list[str], width: int) -> Iterator[tuple[list[str], int]]:
    """Split columns into blocks that fit the width, each with the length of its bars."""
    needed = [max(len(_heading(c)), _NUMBER + 1 + _MIN_BAR) + 2 for c in columns]
    start = 0
    while start < len(columns):
        stop, used = start, 0
        while stop < len(columns) and (stop == start or used + needed[stop] <= width):
            used += needed[stop]
            stop += 1
        spare = max(0, width - used) // (stop - start)
        yield columns[start:stop], min(_MAX_BAR, _MIN_BAR + spare)
        start = stop


def _block(table: pd.DataFrame, columns: list[str], bar: int) -> Table:
    made = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    made.add_column("layer", style="dim", no_wrap=True)
    information = [column for column in table.columns if column not in ("layer", "name", "entropy")]
    most = table[information].to_numpy(float).max() if information else 1.0
    for column in columns:
        made.add_column(Text(_heading(column)), no_wrap=True)
    for _, row in table.iterrows():
        cells = [_cell(float(row[c]), 1.0 if c == "entropy" else most, bar, _colour(c)) for c in columns]
        made.add_row(Text(str(row["name"])), *cells)
    return made


def _cell(value: float, most: float, bar: int, colour: str) -> Text:
    if math.isnan(value):
        return Text("–".rjust(_NUMBER))
    drawn = bar_of(value / most if most > 0 else 0.0, bar)
    return Text(f"{value:.4f} ") + Text(drawn, colour)


def bar_of(share: float, width: int) -> str:
    """Draw a bar of at most `width` characters.

    >>> bar_of(0.5, 3), bar_of(1.0, 2), bar_of(0.0, 4)
    ('█▌', '██', '')
    """
    eighths = round(8 * width * min(max(share, 0.0), 1.0))
    return "█" * (eighths // 8) + _EIGHTHS[eighths % 8].strip()


def _heading(column: str) -> str:
    """Shorten a column's name to one printable line: a data set's columns may have any names."""
    name = column.removeprefix("I(").removesuffix(")") if column.startswith("I(") else column
    name = " ".join("".join(c if c.isprintable() else " " for c in name).split()).removeprefix("column:")
    for long, short in (("input_", "in "), ("output_", "out ")):
        name = short + name.removeprefix(long) if name.startswith(long) else name
    return ("H(Z)" if column == "entropy" else f"I({name})")[:24]


def _colour(column: str) -> str:
    if column == "entropy":
        return "blue"
    return "cyan" if column.startswith("I(input_") else "magenta" if column.startswith("I(output_") else "green"
