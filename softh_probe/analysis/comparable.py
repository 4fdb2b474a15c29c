"""Checks of whether results are comparable: of the same text and positions, with the same anchors and labels."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from softh_probe.accumulators.label_sampling import samples_of
from softh_probe.analysis.sites import anchors_of
from softh_probe.errors import InputError
from softh_probe.estimators.recipes import with_recipe
from softh_probe.labels import ORDERS
from softh_probe.positions import describe_policy, same_policy
from softh_probe.result import ProbeResult

#: Settings from which anchors are drawn. Equal recipes at equal widths give equal anchors.
RECIPE = ("n_anchors", "anchor_sets", "anchors", "seed", "calibration")

#: Settings that decide which texts of a data set are read, and in which order.
_READING = (
    *("data_revision", "subset", "split", "text_column", "sample_by"),
    *("max_documents", "max_tokens", "shuffle_seed"),
)

#: Settings by which a tokenizer gives other tokens of the same texts.
_TOKENISING = ("max_length", "overflow", "add_special_tokens")


def check_comparable(
    results: Sequence[ProbeResult], titles: Sequence[str], *, allow_different: bool = False
) -> list[str]:
    """Check that results were measured on the same text and with the same anchors as the first one.

    Models of different widths cannot have equal anchors: theirs must have the same recipe. Results of the same texts
    under different tokenizers may stand side by side: a note says that their tokens differ.

    Args:
        results: two or more.
        titles: their names.
        allow_different: return the differences instead of raising.

    Returns:
        Notes for the reader: allowed differences, and different tokens, widths and numbers of positions.

    Raises:
        InputError: corpora, policies of positions or anchors differ, or are not known.
    """
    notes = []
    for other, title in zip(results[1:], titles[1:], strict=True):
        check_sites(results[0], other, (titles[0], title))
        of_populations = [*corpus_differences(results[0], other), *population_differences(results[0], other)]
        different = [*of_populations, *_anchors_differ(results[0], other)]
        if different and not allow_different:
            raise InputError(
                f"folders: {titles[0]} and {title} differ in {'; in '.join(different)}; add --allow-different to show "
                "them side by side all the same"
            )
        notes += [f"{titles[0]} and {title} differ in {what}: their values are not comparable." for what in different]
        notes += [f"{titles[0]} and {title}: {what}" for what in notes_on(results[0], other)]
    return notes


def check_sites(one: ProbeResult, other: ProbeResult, titles: Sequence[str]) -> None:
    """Check that two results have a site in common.

    Raises:
        InputError: they have none, so no row of one stands beside one of the other.
    """
    if not {*one.sites} & {*other.sites}:
        sites = [", ".join(result.sites) for result in (one, other)]
        raise InputError(
            f"results: {titles[0]} measured {sites[0]} and {titles[1]} {sites[1]}, with no site in common; measure one "
            "of them again with the --sites of the other"
        )


def check_anchors(one: ProbeResult, other: ProbeResult, titles: Sequence[str]) -> None:
    """Check that two results have the same anchors, or, at different widths, anchors of the same recipe.

    Raises:
        InputError: they have not, so their values are not comparable.
    """
    if different := _anchors_differ(one, other):
        raise InputError(
            f"results: {titles[0]} and {titles[1]} differ in {'; in '.join(different)}, so their values are not "
            "comparable; measure one of them again with the settings of the other"
        )


def corpus_differences(one: ProbeResult, other: ProbeResult) -> list[str]:
    """Say in which way the texts of two results differ; nothing where they are the same, in whatever tokens."""
    digests = _tokens_sha256(one, other)
    if "" in digests:
        return [_unrecorded(one, other)]
    if digests[0] == digests[1] or tokens_differ(one, other):
        return []
    corpora = [result.info.get("corpus") or {} for result in (one, other)]
    if all("sequences" in corpus for corpus in corpora):
        fed = " and ".join(f"{int(corpus['sequences']):,}" for corpus in corpora)
        by = _tokenizers(one, other)
        return [f"what they were fed ({fed} sequences{by}; SHA-256 {digests[0][:12]}…, {digests[1][:12]}…)"]
    data = [str(corpus.get("data")) for corpus in corpora]
    named = f"{data[0]}, {data[1]}" if data[0] != data[1] else f"both read {data[0]}, {_how_corpora_differ(one, other)}"
    return [f"their corpus ({named}; SHA-256 {digests[0][:12]}…, {digests[1][:12]}…)"]


def _tokenizers(one: ProbeResult, other: ProbeResult) -> str:
    """Say that other tokenizers made the sequences that models were fed, where that is known."""
    described = [result.info.get("tokenizer") or {} for result in (one, other)]
    names = [str(tokenizer.get("tokenizer") or tokenizer.get("class") or "") for tokenizer in described]
    if "" in names or names[0] == names[1]:
        return ""
    return f" of the tokenizers {names[0]} and {names[1]}, maybe of the same texts, which is not recorded"


def _unrecorded(one: ProbeResult, other: ProbeResult) -> str:
    """Say that the texts of at least one result are not known, and why not where a model was fed them."""
    corpora = [result.info.get("corpus") or {} for result in (one, other)]
    notes = [corpus["sequences_note"] for corpus in corpora if corpus.get("sequences_note")]
    kinds = {"fed" if "sequences" in corpus else "read" if corpus else "unknown" for corpus in corpora}
    if kinds == {"fed", "read"}:
        notes.append("a run's corpus and what other code feeds have other digests")
    reason = f" ({'; '.join(dict.fromkeys(notes))})" if notes else ""
    return f"their corpus, which at least one of them does not record{reason}"


def population_differences(one: ProbeResult, other: ProbeResult) -> list[str]:
    """Say in which way the policies of positions of two results differ; nothing where they are the same."""
    found = []
    counts = [str((result.info.get("settings") or {}).get("count") or "forwarded") for result in (one, other)]
    if counts[0] != counts[1]:
        found.append(f"how positions are counted (count {counts[0]} and {counts[1]})")
    policies = [result.info.get("positions_policy") or {} for result in (one, other)]
    if same_policy(*policies):
        return found
    described = " and ".join(describe_policy({**p, "left": None}) for p in policies)
    return [*found, f"the positions that count ({described})"]


def policy_notes(policies: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say of the results of a sweep whether other positions count in some of them, by their policies of positions."""
    different: list[Mapping[str, Any]] = []
    for policy in policies:
        if not any(same_policy(policy, known) for known in different):
            different.append(policy)
    if len(different) < 2:
        return []
    named = "; ".join(describe_policy({**policy, "left": None}) for policy in different)
    return [f"positions that count differ ({named}): values are not comparable between them"]


def _how_corpora_differ(one: ProbeResult, other: ProbeResult) -> str:
    """Say in which settings two readings of the same data differ, or else in what."""
    configs = [result.info.get("config") or {} for result in (one, other)]
    changed = [key for key in _READING if configs[0].get(key) != configs[1].get(key)]
    if changed:
        return ", ".join(f"{key} {configs[0].get(key)} and {configs[1].get(key)}" for key in changed)
    texts = [(result.info.get("corpus") or {}).get("texts_sha256") for result in (one, other)]
    return "of which the texts differ" if None not in texts else "as different tokens"


def tokens_differ(one: ProbeResult, other: ProbeResult) -> bool:
    """Test whether both results are of the same texts, cut into different tokens.

    Results of earlier versions do not record the SHA-256 of their texts.
    """
    corpora = [result.info.get("corpus") or {} for result in (one, other)]
    texts, tokens = [corpus.get("texts_sha256") for corpus in corpora], _tokens_sha256(one, other)
    return bool(texts[0]) and texts[0] == texts[1] and tokens[0] != tokens[1]


def is_same_text(one: ProbeResult, other: ProbeResult) -> bool:
    """Test whether both results are known to be of the same texts, in whatever tokens."""
    digests = _tokens_sha256(one, other)
    return (bool(digests[0]) and digests[0] == digests[1]) or tokens_differ(one, other)


#: Digests of tokens: of a corpus, of a stream (chained), and of what other code fed, in its order or any.
_DIGESTS = ("sha256", "chained_sha256", "sequences_sha256", "sequence_set_sha256")


def _tokens_sha256(one: ProbeResult, other: ProbeResult) -> list[str]:
    """Find a digest of tokens that both results have, an equal one if there is one. Empty where one has none."""
    corpora = [result.info.get("corpus") or {} for result in (one, other)]
    common = [key for key in _DIGESTS if all(corpus.get(key) for corpus in corpora)]
    equal = [key for key in common if corpora[0][key] == corpora[1][key]]
    key = next(iter([*equal, *reversed(common), *_DIGESTS]))
    return [str(corpus.get(key) or "") for corpus in corpora]


def corpus_notes(corpora: Iterable[Mapping[str, Any]]) -> list[str]:
    """Say of the results of a sweep whether their texts or their tokens differ.

    Args:
        corpora: with the SHA-256 of tokens (`sha256`, `corpus_sha256` or `chained_sha256`) and texts (`texts_sha256`),
            where known.
    """
    keys = ("sha256", "corpus_sha256", "chained_sha256")
    known = [(next(filter(None, map(c.get, keys)), None), c.get("texts_sha256")) for c in corpora]
    n_tokens = len({tokens for tokens, _ in known if tokens})
    texts = {texts for tokens, texts in known if tokens}
    if n_tokens < 2:
        return []
    if len(texts - {None}) > 1:
        return [f"texts differ: {len(texts - {None})} different corpora, whose values are not comparable"]
    return [
        f"tokenizers differ: the same texts are {n_tokens} different corpora, so informations about tokens and n-grams "
        "are of other labels in each: their shape over depth can be compared, and their shares of H(X), bits cannot"
    ]


def _anchors_differ(one: ProbeResult, other: ProbeResult) -> list[str]:
    if same_anchors(one, other):
        return []
    recipes = [(with_recipe(result.info).get("settings") or {}) for result in (one, other)]
    changed = [key for key in RECIPE if recipes[0].get(key) != recipes[1].get(key)]
    if changed:
        settings = ", ".join(f"{key} {recipes[0].get(key)} and {recipes[1].get(key)}" for key in changed)
        return [f"their anchors ({settings})"]
    ours, theirs = ({a["dim"]: (a["sha256"], a["temperature"]) for a in _anchors(result)} for result in (one, other))
    if any(ours[dim] != theirs[dim] for dim in ours.keys() & theirs.keys()):
        return ["their anchors, though drawn in the same way (SHA-256)"]
    return []


def same_anchors(one: ProbeResult, other: ProbeResult) -> bool:
    """Test whether the sites of both results were measured with identical anchors and temperatures."""
    common = _common_sites(one, other)
    ours, theirs = (
        {(site, a["dim"], a["sha256"], a["temperature"]) for site in common for a in anchors_of(result, site)}
        for result in (one, other)
    )
    return bool(ours) and ours == theirs


def follow_same_labels(one: ProbeResult, other: ProbeResult) -> bool:
    """Test whether two results followed the same labels: of the same tokens, by the same seed and thresholds.

    Of what other code feeds, which labels are followed may depend on the order.
    """
    digests = _tokens_sha256(one, other)
    corpora = [result.info.get("corpus") or {} for result in (one, other)]
    orders = [corpus.get("sequences_sha256") for corpus in corpora]
    if "sequences" in corpora[0] and (orders[0] is None or orders[0] != orders[1]):
        return False
    seeds = [(result.info.get("settings") or {}).get("seed") for result in (one, other)]
    ours, theirs = samples_of(one.info), samples_of(other.info)
    same_samples = all(ours.get(name) == theirs.get(name) for name in {*one.label_sets} & {*other.label_sets})
    return bool(digests[0]) and digests[0] == digests[1] and seeds[0] == seeds[1] and same_samples


def _anchors(result: ProbeResult) -> list[dict[str, Any]]:
    return result.info.get("anchors") or []


def _common_sites(one: ProbeResult, other: ProbeResult) -> list[str]:
    return [site for site in one.sites if site in other.sites]


def _width_note(one: ProbeResult, other: ProbeResult) -> list[str]:
    """Say of which sites of both results the widths differ."""
    widths = {
        site: [{int(a["dim"]) for a in anchors_of(result, site)} for result in (one, other)]
        for site in _common_sites(one, other)
    }
    unequal = {site: pair for site, pair in widths.items() if pair[0] != pair[1]}
    if not unequal:
        return []
    of = f" of {', '.join(unequal)}" if len(widths) > 1 else ""
    both = [", ".join(map(str, sorted(set.union(*(pair[n] for pair in unequal.values()))))) for n in (0, 1)]
    return [
        f"hidden states{of} are {' and '.join(both)} wide, so anchors of the same recipe differ; the spread over "
        "anchor sets says how much that matters."
    ]


def notes_on(one: ProbeResult, other: ProbeResult) -> list[str]:
    """Say what differs without making results incomparable: widths, tokens, positions, samples of labels."""
    found = _width_note(one, other)
    named = [not result.places.n_blocks for result in (one, other)]
    if named[0] != named[1]:
        kinds = ["modules that were named" if one_named else "layers" for one_named in named]
        found.append(
            f"they measured {' and '.join(kinds)}: rows stand side by side by where they come in each, whatever they "
            "are."
        )
    found += [*_token_notes(one, other), *_position_notes(one, other)]
    if one.sites != other.sites:
        sites = [", ".join(result.sites) for result in (one, other)]
        found.append(f"they measured different sites ({' and '.join(sites)}): those of both are compared.")
    sampled = one.sampled_sets or other.sampled_sets
    if sampled and not tokens_differ(one, other) and not follow_same_labels(one, other):
        rows = [str((result.info.get("settings") or {}).get("label_rows", "all")) for result in (one, other)]
        label_rows = f"{rows[0]} in both" if rows[0] == rows[1] else " and ".join(rows)
        found.append(
            f"they followed different samples of labels (label_rows {label_rows}): differences of informations have "
            "the standard errors by that of both."
        )
    return found


def _token_notes(one: ProbeResult, other: ProbeResult) -> list[str]:
    """Say of the same texts in other tokens what can be compared, and what cannot."""
    if not tokens_differ(one, other):
        return []
    start = "their texts are the same and their tokens differ"
    if settings := _tokenised_otherwise(one, other):
        return [f"{start} by settings of the same tokenizer ({settings}): other parts of texts were measured."]
    cut = [_n_cut(result) for result in (one, other)]
    found = [
        f"{start} by their tokenizers: labels of tokens and n-grams are others in each, so bits of information about "
        "them are not comparable. Its shape over depth is, and its share of H(X) (label_entropy); so are entropy and "
        f"information about columns, {'as far as' if any(cut) else 'since'} both are of the same characters."
    ]
    if any(cut):
        found.append(
            f"{cut[0]:,} and {cut[1]:,} documents were cut at max_length, so other parts of their texts were measured; "
            "a longer max_length or overflow=split takes whole texts."
        )
    return found


def _tokenised_otherwise(one: ProbeResult, other: ProbeResult) -> str:
    """Say by which settings the same tokenizer gave two results other tokens; empty where it is not the same."""
    heads = [
        (model.get("model"), model.get("commit") or model.get("revision"), config.get("tokenizer"))
        for model, config in ((r.info.get("model") or {}, r.info.get("config") or {}) for r in (one, other))
    ]
    if heads[0] != heads[1]:
        return ""
    configs = [result.info.get("config") or {} for result in (one, other)]
    changed = [key for key in _TOKENISING if configs[0].get(key) != configs[1].get(key)]
    return ", ".join(f"{key} {configs[0].get(key)} and {configs[1].get(key)}" for key in changed)


def _position_notes(one: ProbeResult, other: ProbeResult) -> list[str]:
    """Say of results of the same texts why unequal numbers of positions were counted."""
    positions = [int(result.info.get("positions", 0)) for result in (one, other)]
    if positions[0] == positions[1] or corpus_differences(one, other):
        return []
    settings = _tokenised_otherwise(one, other)
    by_tokens = settings or "their tokenizers cut the same texts into more and fewer tokens"
    reasons = {
        by_tokens: tokens_differ(one, other),
        "other positions count in each": bool(population_differences(one, other)),
        "label sets of other orders leave out other ends of documents": _orders(one) != _orders(other),
    }
    why = "; ".join(reason for reason, holds in reasons.items() if holds)
    return [f"{positions[0]:,} and {positions[1]:,} positions were counted{f': {why}' if why else ''}."]


def _orders(result: ProbeResult) -> list[int]:
    """Find how many tokens up to a position, and after it, the label sets of a result need."""
    return [
        max([least, *(n for order, n in ORDERS.items() if f"{direction}_{order}" in result.label_sets)])
        for direction, least in (("input", 1), ("output", 0))
    ]


def _n_cut(result: ProbeResult) -> int:
    """Count the documents of which the end was left out."""
    if (result.info.get("config") or {}).get("overflow", "truncate") != "truncate":
        return 0
    return int((result.info.get("corpus") or {}).get("documents_longer_than_max_length") or 0)
