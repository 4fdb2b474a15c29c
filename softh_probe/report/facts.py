"""Facts of a run for readers: tables of names and values, and a summary in one line."""

from __future__ import annotations

from typing import Any

from softh_probe.choices import Choices
from softh_probe.layer_places import RESIDUAL
from softh_probe.positions import describe_policy
from softh_probe.report.mean_words import mean_facts
from softh_probe.result import ProbeResult

Facts = list[tuple[str, str]]

#: Tasks that are named one by one.
_MOST_TASKS = 3


def facts(result: ProbeResult) -> dict[str, Facts]:
    """List model, corpus, anchors, times, versions and settings as (name, value) by heading, without unknown ones."""
    info = result.info
    model, corpus, settings = (info.get(k) or {} for k in ("model", "corpus", "settings"))
    tokenizer, evaluation = (info.get(k) or {} for k in ("tokenizer", "evaluation"))
    return {
        heading: kept
        for heading, entries in {
            "Measurement": [
                ("name", info.get("name")),
                ("notes", info.get("notes")),
                ("created", info.get("created")),
                *((k.replace("_", " "), _pairs(v)) for k, v in evaluation.items()),
                *mean_facts(result),
            ],
            "Model": [
                ("model", model.get("model")),
                ("revision", model.get("revision")),
                ("commit", model.get("commit")),
                ("weights SHA-256", model.get("weights_sha256") or model.get("weights_note")),
                ("class", model.get("class")),
                ("blocks", _count(info.get("n_blocks"))),
                ("parameters", _count(model.get("n_parameters"))),
                ("dtype", model.get("dtype")),
                ("devices", _list(model.get("devices"))),
                ("tokenizer", tokenizer.get("tokenizer") or tokenizer.get("class")),
                ("code of the checkpoint", "allowed to run" if model.get("trust_remote_code") else None),
            ],
            "Corpus": [
                ("data", corpus.get("data")),
                ("data revision", corpus.get("data_revision")),
                ("data commit", corpus.get("data_commit")),
                ("documents", _count(corpus.get("documents"))),
                ("documents read", _count(corpus.get("documents_read"))),
                ("documents empty", _count(corpus.get("documents_empty"))),
                ("documents without tokens", _count(corpus.get("documents_without_tokens"))),
                ("documents too short", _count(corpus.get("documents_too_short"))),
                ("documents without these positions", _count(corpus.get("documents_left_out") or None)),
                ("documents longer than max_length", _count(corpus.get("documents_longer_than_max_length"))),
                ("tokens", _count(info.get("tokens"))),
                ("unknown tokens", _count(corpus.get("tokens_unknown"))),
                ("positions", describe_policy(info["positions_policy"]) if info.get("positions_policy") else None),
                ("positions counted", _count(info.get("positions"))),
                ("tokens SHA-256", corpus.get("sha256")),
                ("tokens SHA-256, chained", None if corpus.get("sha256") else corpus.get("chained_sha256")),
                ("texts SHA-256", corpus.get("texts_sha256")),
                ("sequences fed", _count(corpus.get("sequences"))),
                ("sequences SHA-256, in their order", corpus.get("sequences_sha256")),
                ("sequences SHA-256, as a set", corpus.get("sequence_set_sha256") or corpus.get("sequences_note")),
            ],
            "Choices made": [
                (choice.about, f"{choice.chosen} ({choice.reason})")
                for choice in Choices.from_json(info.get("choices") or ())
            ],
            "Anchors": [
                ("anchors a set (m)", _count(result.n_anchors)),
                ("sets", _count(result.tensors["mass"].shape[1])),
                ("kind", settings.get("anchors")),
                ("seed", settings.get("seed")),
                ("calibration", settings.get("calibration")),
                *_anchors(info.get("anchors") or []),
            ],
            "Time and memory": [
                *((stage, _count(s, 1, " s")) for stage, s in (info.get("seconds") or {}).items()),
                ("tokens per second", _count(info.get("tokens_per_second"))),
                *((f"peak memory, {k}", _count(v, 2, " GiB")) for k, v in (info.get("peak_memory_gib") or {}).items()),
            ],
            "Versions": list((info.get("versions") or {}).items()),
            "Settings": [(k, _list(v)) for k, v in (info.get("config") or settings).items()],
        }.items()
        if (kept := [(name, str(value)) for name, value in entries if value not in (None, "")])
    }


def task_of(result: ProbeResult) -> str:
    """Name the tasks, or else the data, on which a model was evaluated; empty where nobody knows."""
    evaluation = result.info.get("evaluation") or {}
    tasks = list(map(str, evaluation.get("tasks") or ()))
    more = f" and {len(tasks) - _MOST_TASKS} more" if len(tasks) > _MOST_TASKS else ""
    return f"{', '.join(tasks[:_MOST_TASKS])}{more}" or str(evaluation.get("data") or "")


def summary(result: ProbeResult) -> str:
    """Summarise a result in one line: positions, layers and anchors."""
    corpus = result.info.get("corpus") or {}
    task = task_of(result)
    of_what = f" of {str(corpus['data']).rstrip('/').rpartition('/')[2]}" if corpus.get("data") else ""
    of_what = of_what or (f" of {task}" if task else "")
    sets = result.tensors["mass"].shape[1]
    policy = result.info.get("positions_policy")
    which = f" ({describe_policy({**policy, 'left': None})})" if policy else ""
    several = result.sites != [RESIDUAL]
    rows = f"{len(result.rows)} {'rows of ' + ', '.join(result.sites).replace('_', ' ') if several else 'layers'}"
    return (
        f"{_count(result.info.get('positions'))} positions{which}{of_what} · {rows} · "
        f"{sets} set{'s' * (sets > 1)} of {result.n_anchors} anchors"
    )


def policy_lines(result: ProbeResult) -> list[str]:
    """Say which positions count; nothing where all do."""
    policy = result.info.get("positions_policy")
    return [f"positions: {describe_policy(policy)}"] if policy else []


def _anchors(anchors: list[dict[str, Any]]) -> Facts:
    """List temperature and digest of the anchors of each width."""
    several = len(anchors) > 1
    found = []
    for described in anchors:
        width = f", width {described['dim']}" if several else ""
        found += [
            (f"temperature{width}", f"{described['temperature']:.9g}"),
            (f"anchors SHA-256{width}", described["sha256"]),
        ]
    return found if several or not anchors else [("width", str(anchors[0]["dim"])), *found]


def _count(value: Any, digits: int = 0, unit: str = "") -> str | None:
    """Format a number with its unit; other values are returned as they are."""
    if isinstance(value, float):
        return f"{value:,.{digits}f}{unit}"
    return f"{value:,}{unit}" if isinstance(value, int) else value


def _pairs(value: Any) -> Any:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else _list(value)


def _list(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
