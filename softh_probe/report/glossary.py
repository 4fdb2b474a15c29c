"""The columns, metrics and words of tables and pages, explained: a section of pages and of README.md, the same in both.

Kinds of spread have a table of their own, in `softh_probe.report.spreads`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Entry:
    """What one or several names mean; names of columns, metrics and flags stand between backticks.

    Attributes:
        names: as tables have them, or a word.
        says: what they mean.
    """

    names: str
    says: str


@dataclass(frozen=True)
class Glossary:
    """The entries of one kind.

    Attributes:
        heading: what they are.
        kind: of one of them.
        entries: in the order in which they are needed.
    """

    heading: str
    kind: str
    entries: tuple[Entry, ...]


COLUMNS = Glossary(
    "Columns of tables",
    "column",
    (
        Entry(
            "`layer`",
            "The index in the model, whichever layers were measured: 0 the embeddings, i the i-th block call, L + 1 "
            "the final norm after L blocks. Of modules given by name, the number of the row. Missing in the row "
            "`mean`.",
        ),
        Entry(
            "`name`",
            "The name of the row: `embeddings`, `layer.1` to `layer.L`, `final_norm`; of a site `layer.1.attention` "
            "and the like; of a module its path. `mean` is the mean over `layer.1` to `layer.L`, or over "
            "`--mean-over`; of a site `mean.attention` and the like.",
        ),
        Entry(
            "`label_set`",
            "Whose labels the metric is of: `input_unigram`, `column:language` and the like; of optimality the order "
            "(`unigram` and the like), of `residual` the direction (`input`, `output`). Empty for `entropy`, "
            "`entropy_document_sd` and `anisotropy`, which need no labels. pandas reads an empty cell of a CSV file as "
            'NaN: `read_csv(…).fillna({"label_set": ""})`, or read the `.parquet`.',
        ),
        Entry("`metric`", "What was computed; see the metrics."),
        Entry(
            "`value`",
            "The metric, averaged over the anchor sets, in the unit that was asked for; in files, in units of log m.",
        ),
        Entry(
            "`sd`",
            "The standard deviation of `value` over the anchor sets: how much another draw of anchors changes it. "
            "Missing with one set. Of other documents it says nothing: that is `se`.",
        ),
        Entry("`se`", "The standard error of `value` over documents. It takes `--intervals`."),
        Entry(
            "`sampling_sd`",
            "The standard error of `value` by the sampling of labels, 0 where it is exact. Where nothing was "
            "sampled, there is no such column.",
        ),
        Entry(
            "`p_value`",
            "Beside `mutual_information` of labels of whole documents: the share of relabelings of the documents with "
            "as much information. In `compare`: that of the difference, over documents.",
        ),
        Entry("`site`", "Where `--sites` asked for parts of blocks: `residual`, `attention` and the like."),
        Entry(
            "`position`", "In tables by position: the bin of positions, `2-3` and the like; `all` is all bins together."
        ),
        Entry(
            "`checkpoint`, `model`, `revision`, `step`, `tokens`",
            "In tables of sweeps: the checkpoint, and after how many steps and tokens of training it was saved.",
        ),
        Entry(
            "`a`, `b`, `difference`, `p_holm`, `significant`",
            "In `compare`: both values, the second minus the first, its p-value corrected for the number of layers "
            "(Holm), and whether that is below 0.05.",
        ),
    ),
)

METRICS = Glossary(
    "Metrics",
    "metric",
    (
        Entry(
            "`entropy`",
            "H(Z) of all counted positions: how evenly hidden states spread over the anchors. In units of log m, it is "
            "that of m^H(Z) anchors, evenly used: 0.7 is as much as 25 of 100.",
        ),
        Entry(
            "`entropy_document_sd`",
            "The standard deviation of H(Z) over 100 bootstrap replicates of the documents. It is a metric: its "
            "`value` is a spread over documents, while the column `sd` beside any value is a spread over anchor sets.",
        ),
        Entry(
            "`anisotropy`",
            "The norm of the mean unit vector of the counted states, ‖mean of h/‖h‖‖: 0 where directions cancel, 1 "
            "where all states point one way. Of many positions its square is the mean cosine of two of them. From 0.9 "
            "on it is told beside the values: entropy and every information are low there, and low information does "
            "not mean that the layer does not know.",
        ),
        Entry(
            "`label_entropy`",
            "H(X) = −Σ_x P(x) log P(x) of the labels, the same in all layers: all there is to know of them. “0.37 of "
            "2.75 bits” is I(X;Z) of H(X).",
        ),
        Entry(
            "`conditional_entropy`", "H(Z|X) = Σ_x P(x) H(p̂_x): how evenly the states of positions of one label spread."
        ),
        Entry(
            "`mutual_information`",
            "I(X;Z), the published plug-in estimate: how much a state tells of the label, at most H(X) and at most "
            "log m. It is biased upward where labels are rare.",
        ),
        Entry(
            "`mutual_information_max`",
            "The ceiling: H(Z) − mean H(q), the value of I(X;Z) when every label is unique.",
        ),
        Entry(
            "`mutual_information_null`",
            "Chance: the expected I(X;Z) when labels with the same counts are assigned at random; labels of whole "
            "documents, to documents.",
        ),
        Entry(
            "`mutual_information_null_sd`",
            "The standard deviation of that over relabelings of the documents; for labels of whole documents alone.",
        ),
        Entry(
            "`mutual_information_corrected`",
            "I(X;Z) of positions whose label occurs at least twice, corrected for small counts.",
        ),
        Entry("`coverage`", "The share of positions whose label occurs at least twice."),
        Entry("`regularity`", "I(X;Z) / H(Z)."),
        Entry("`optimality`", "I(output n-gram; Z) / I(input n-gram; Z), for each n."),
        Entry(
            "`optimality_corrected`",
            "The same ratio of corrected informations; missing where the input's is below 0.01 log m.",
        ),
        Entry(
            "`regularity_mean_of_layers`, `optimality_mean_of_layers`, `optimality_corrected_mean_of_layers`",
            "In the row `mean` alone: the mean of the layers' ratios, while `regularity`, `optimality` and the like "
            "are there the ratio of the mean informations. Publications give either; say which.",
        ),
        Entry(
            "`information_share`",
            "(I_n − I_{n−1}) / I_max of n-grams: the share of the ceiling that one more token of context adds; I_0 is "
            "0.",
        ),
        Entry(
            "`residual`",
            "(I_max − I_N) / I_max, with N the highest order: what is left for longer contexts. With the shares it "
            "sums to 1.",
        ),
        Entry(
            "`information_share_corrected`, `residual_corrected`",
            "The same of corrected informations, over the same I_max.",
        ),
    ),
)

WORDS = Glossary(
    "Words",
    "word",
    (
        Entry(
            "anchors, anchor set",
            "Points on the unit sphere that hidden states are softly assigned to; a set is one draw of m of them. "
            "Values are means over the sets.",
        ),
        Entry(
            "unit, efficiency",
            "Entropies and informations are in units of log m, from 0 to 1 (`efficiency`), unless you ask for `nats` "
            "or `bits`; log m is 6.64 bits with 100 anchors. All other metrics are ratios.",
        ),
        Entry("position", "A token whose hidden state is measured; in bins, its place in the document."),
        Entry(
            "population",
            "The positions that count: real tokens, narrowed by `--positions`, at which every n-gram label that was "
            "asked for is defined. It is one for all n-grams of a result; a column has a value at some or all of them.",
        ),
        Entry(
            "label, label set",
            "What one asks a state about: the tokens before or after a position, the value of a column, a number of "
            "one's own. A set is one such question.",
        ),
        Entry(
            "ceiling, chance, corrected",
            "`mutual_information_max`, `mutual_information_null`, and I(X;Z) without either.",
        ),
        Entry(
            "document",
            "A text of the data; a row may hold several. `se` and `p_value` are over documents, in whole rows.",
        ),
    ),
)

GLOSSARIES = (COLUMNS, METRICS, WORDS)


def markdown_of(glossary: Glossary) -> str:
    r"""Write a glossary as a table of README.md.

    >>> print(markdown_of(Glossary("Words", "word", (Entry("H(Z|X)", "An entropy."),))))
    | word | meaning |
    |---|---|
    | H(Z\|X) | An entropy. |
    """
    lines = [f"| {glossary.kind} | meaning |", "|---|---|"]
    cells = ((entry.names.replace("|", r"\|"), entry.says.replace("|", r"\|")) for entry in glossary.entries)
    return "\n".join([*lines, *(f"| {names} | {says} |" for names, says in cells)])
