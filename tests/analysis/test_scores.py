"""Score files: tables, leaderboards, lm-evaluation-harness; what is left out is said, what is damaged refused."""

import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softh_probe.analysis.model_points import ModelPoint
from softh_probe.analysis.score_matching import match
from softh_probe.analysis.score_table import COLUMNS, Scores
from softh_probe.analysis.scores import read_scores
from softh_probe.errors import InputError

LEADERBOARD = (
    "eval_name,Precision,Type,T,Weight type,Architecture,Model,fullname,Model sha,Average ⬆️,Hub License,Hub ❤️,"
    "#Params (B),Available on the hub,MoE,Flagged,Chat Template,CO₂ cost (kg),IFEval Raw,IFEval,BBH Raw,BBH,"
    "MATH Lvl 5 Raw,MATH Lvl 5,GPQA Raw,GPQA,MUSR Raw,MUSR,MMLU-PRO Raw,MMLU-PRO,Merged,Official Providers,"
    "Upload To Hub Date,Submission Date,"
    "Generation,Base Model\n"
)


def leaderboard_line(model, sha, score):
    scores = ",".join(f"{score / 100},{score}" for _ in range(6))
    return (
        f'x,bfloat16,pretrained,P,Original,LlamaForCausalLM,"<a href=""x"">{model}</a>",{model},{sha},{score},mit,'
        f"5,7.2,True,False,False,False,1.5,{scores},False,True,2024-06-01,2024-06-12,0,{model}\n"
    )


def written(tmp_path, text, name="scores.csv"):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def lines(scores):
    return [tuple(line) for line in scores.table.itertuples(index=False)]


def test_the_leaderboards_table_is_read_as_it_is(tmp_path):
    text = LEADERBOARD + leaderboard_line("org/a", "f" * 40, 30.0) + leaderboard_line("org/b", "main", 40.0)
    scores = read_scores(written(tmp_path, text))
    assert scores.benchmarks == ["Average ⬆️", "IFEval", "BBH", "MATH Lvl 5", "GPQA", "MUSR", "MMLU-PRO"]
    assert ("org/a", "f" * 40, "BBH", 30.0) in lines(scores)
    assert set(scores.others["benchmark"]) >= {"#Params (B)", "CO₂ cost (kg)", "Hub ❤️", "BBH Raw"}
    said = " ".join(scores.notes)
    for name in ("#Params (B)", "CO₂ cost (kg)", "Hub ❤️", "Precision", "IFEval Raw"):
        assert name in said


@pytest.mark.parametrize(("name", "separator"), [("s.csv", ","), ("s.csv", ";"), ("s.tsv", "\t")])
def test_separators_marks_and_missing_cells(tmp_path, name, separator):
    rows = [
        ["\ufeffModel", "Revision", "arc", "hella"],
        ["org/a", "", "0.5", "n/a"],
        ["org/b", "step1", "x", "0.25"],
        ["", "", "1", "1"],
    ]
    rows += [["org/c", "", "0.75"]]
    scores = read_scores(written(tmp_path, "\n".join(separator.join(row) for row in rows), name))
    assert lines(scores) == [
        ("org/a", None, "arc", 0.5),
        ("org/b", "step1", "hella", 0.25),
        ("org/c", None, "arc", 0.75),
    ]
    assert "cells that are no numbers count as missing: arc (1)" in scores.notes
    assert "1 lines name no model" in scores.notes


def test_parquet_holds_what_csv_holds(tmp_path):
    frame = pd.DataFrame(
        {"model": ["org/a", "org/b"], "BBH": [1.5, None], "MoE": [True, False], "n_parameters": [3, 4]}
    )
    frame.to_parquet(tmp_path / "s.parquet")
    scores = read_scores(tmp_path / "s.parquet")
    assert lines(scores) == [("org/a", None, "BBH", 1.5)]
    assert set(scores.others["benchmark"]) == {"n_parameters"}
    assert "no numbers, and left out: MoE" in scores.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("model,BBH\n", "has no scores"),
        ("model,BBH\norg/a,high\n", "has no scores"),
        ("a,b\n1,2\n", r"has no column of models \(fullname, .*\); it has a, b"),
        ("model,BBH,BBH\na,1,2\n", "several columns 'BBH'"),
        ("model,BBH\na,1,2,3\n", "cannot be read"),
    ],
)
def test_a_table_without_scores_is_refused_in_a_line(tmp_path, text, message):
    with pytest.raises(InputError, match=message) as refused:
        read_scores(written(tmp_path, text))
    assert "\n" not in str(refused.value)


def test_files_that_are_none_are_refused(tmp_path):
    (tmp_path / "latin.csv").write_bytes("model,BBH\nmodèle,1\n".encode("latin-1"))
    (tmp_path / "torn.parquet").write_bytes(b"PAR1 and nothing more")
    for name, message in (
        ("missing.csv", "is no file"),
        ("latin.csv", "is not UTF-8"),
        ("torn.parquet", "cannot be read"),
        (".", "no results_.*json of lm_eval"),
    ):
        with pytest.raises(InputError, match=message):
            read_scores(tmp_path / name)
    written(tmp_path, "x", "scores.xlsx")
    with pytest.raises(InputError, match=r"ends in .csv, .tsv, .parquet or .json, got 'scores.xlsx'"):
        read_scores(tmp_path / "scores.xlsx")


cells = st.text(st.characters(blacklist_categories=("Cs",)), max_size=8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(cells, max_size=4), max_size=5), st.sampled_from([",", ";"]))
def test_any_table_is_read_or_refused_in_a_line(tmp_path_factory, rows, separator):
    text = separator.join(["model", "BBH", "arc"]) + "\n" + "\n".join(separator.join(row) for row in rows)
    path = written(tmp_path_factory.mktemp("any"), text)
    try:
        table = read_scores(path).table
    except InputError as error:
        table, refusal = None, str(error)
    if table is None:
        assert "\n" not in refusal
    else:
        assert not table.empty
        assert table["score"].map(lambda score: abs(score) < float("inf")).all()
        assert not table.duplicated(["model", "revision", "benchmark"]).any()


def harness(folder, name, *, model_args, date=1.0, **entries):
    results = entries.pop(
        "results", {"arc": {"alias": "arc", "acc,none": 0.5, "acc_stderr,none": 0.1, "acc_norm,none": 0.6}}
    )
    written = {"results": results, "config": {"model_args": model_args}, "date": date, **entries}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"results_{name}.json").write_text(json.dumps(written))


def test_the_harness_files_of_a_folder_are_read_at_any_depth(tmp_path):
    harness(tmp_path / "a", "1", model_args="pretrained=org/a,revision=step10,dtype=float32")
    harness(
        tmp_path / "b" / "c",
        "1",
        model_args={"pretrained": "org/b"},
        results={"ifeval": {"prompt_level_strict_acc,none": 0.2}},
    )
    harness(
        tmp_path,
        "named",
        model_args=None,
        model_name="org/c",
        results={"gsm": {"exact_match,strict": 0.1, "exact_match,flexible": 0.3}},
    )
    assert sorted(lines(read_scores(tmp_path)), key=str) == [
        ("org/a", "step10", "arc", 0.5),
        ("org/a", "step10", "arc:acc_norm", 0.6),
        ("org/b", None, "ifeval", 0.2),
        ("org/c", None, "gsm", 0.1),
        ("org/c", None, "gsm:exact_match,flexible", 0.3),
    ]


def test_the_latest_file_of_a_task_counts_and_limits_are_said(tmp_path):
    for name, date, score in (("z", 5.0, 0.1), ("a", 9.0, 0.9), ("m", 7.0, 0.5)):
        harness(tmp_path, name, model_args="pretrained=org/a", date=date, results={"arc": {"acc,none": score}})
    harness(tmp_path, "other", model_args="pretrained=org/a", results={"boolq": {"acc,none": 0.4}})
    scores = read_scores(tmp_path)
    assert sorted(lines(scores)) == [("org/a", None, "arc", 0.9), ("org/a", None, "boolq", 0.4)]
    assert scores.notes == ["in several files, of which the latest counts: arc of org/a"]


def test_groups_stand_for_their_subtasks_and_errors_are_no_scores(tmp_path):
    results = {
        "mmlu": {"acc,none": 0.3, "acc_stderr,none": 0.01, "sample_len": 9, "alias": "mmlu"},
        "mmlu_law": {"acc,none": 0.2},
        "ppl": {"word_perplexity,none": 12.0, "word_perplexity_stderr,none": "N/A"},
    }
    harness(
        tmp_path,
        "1",
        model_args="pretrained=org/a",
        results=results,
        group_subtasks={"mmlu": ["mmlu_law"], "ppl": []},
        higher_is_better={"ppl": {"word_perplexity": False}},
    )
    scores = read_scores(tmp_path)
    assert lines(scores) == [("org/a", None, "mmlu", 0.3), ("org/a", None, "ppl", 12.0)]
    assert scores.notes == ["subtasks, left out since their group has a score: mmlu_law", "lower is better: ppl"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"results": 3}', '{"results": {"arc": {"acc,none": 1}}}', '{"results": {}, "model_name": "a"}']
)
def test_a_damaged_harness_file_is_refused_in_a_line(tmp_path, text):
    with pytest.raises(InputError, match="scores: ") as refused:
        read_scores(written(tmp_path, text, "results_1.json"))
    assert "\n" not in str(refused.value)


def point(model, revision=None, name=None):
    return ModelPoint(name=name or f"{model}@{revision}", model=model, revision=revision, values={})


def matched(points, *rows):
    table = pd.DataFrame([(*row[:2], "BBH", row[2]) for row in rows], columns=[*COLUMNS]).astype({"revision": object})
    return match(points, Scores(table=table.where(table.notna(), None)))


def scores_of(found):
    return [None if score != score else score for score in found.scores.get("BBH", [])]


def test_id_and_revision_match_first():
    points = [point("org/a", "step1"), point("org/a", "step2"), point("org/a"), point("org/b", "main")]
    found = matched(points, ("org/a", "step2", 2.0), ("org/a", "main", 3.0), ("org/b", None, 4.0), ("org/c", None, 5.0))
    assert scores_of(found) == [None, 2.0, 3.0, 4.0]
    assert found.unmatched_points == ["org/a@step1"]
    assert found.unmatched_scores == ["org/c"]
    assert found.notes == []


def test_scores_without_a_revision_are_of_the_only_point():
    assert scores_of(matched([point("org/a", "step9")], ("org/a", None, 1.0))) == [1.0]
    found = matched([point("org/a", "step1"), point("org/a", "step2")], ("org/a", None, 1.0))
    assert scores_of(found) == [None, None]
    assert found.notes == [
        "scores without a revision, of models of which several revisions were measured, left out: org/a"
    ]
    assert found.unmatched_scores == ["org/a"]


def test_scores_of_a_commit_are_of_what_has_no_revision_and_that_is_said():
    found = matched([point("org/a"), point("org/b", "step1")], ("org/a", "a" * 40, 1.0), ("org/b", "b" * 40, 2.0))
    assert scores_of(found) == [1.0, None]
    assert found.notes == ["scores of a commit, matched with what was measured without a revision: org/a"]
    assert scores_of(matched([point("org/a")], ("org/a", "step7", 1.0))) == [None]


def test_local_folders_match_by_path_or_last_name(tmp_path, monkeypatch):
    (tmp_path / "models" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    found = matched([point(str(tmp_path / "models" / "mine"))], ("models/../models/mine", None, 1.0))
    assert (scores_of(found), found.notes) == ([1.0], [])
    found = matched([point("/elsewhere/mine")], ("org/mine", None, 2.0))
    assert (scores_of(found), found.notes) == ([2.0], ["matched by the last part of their names: org/mine"])
    assert scores_of(matched([point("/x/mine"), point("/y/mine")], ("org/mine", None, 2.0))) == [None, None]
    assert scores_of(matched([point("one/mine")], ("other/mine", None, 2.0))) == [None]


def test_case_is_a_last_resort_and_said():
    found = matched([point("Org/A")], ("org/a", None, 1.0))
    assert (scores_of(found), found.notes) == ([1.0], ["matched whatever their case: org/a"])
    assert scores_of(matched([point("Org/A"), point("ORG/A")], ("org/a", None, 1.0))) == [None, None]


def test_lines_that_differ_are_never_chosen_between(tmp_path):
    found = matched([point("org/a")], ("org/a", "a" * 40, 1.0), ("org/a", "b" * 40, 2.0))
    assert scores_of(found) == [None]
    assert any("differ" in note and "org/a" in note for note in found.notes)
    text = "model,BBH\norg/a,1\norg/a,2\norg/b,3\n"
    scores = read_scores(written(tmp_path, text))
    assert lines(scores) == [("org/b", None, "BBH", 3.0)]
    assert scores.notes == ["several lines that differ, all left out; keep one of each: org/a"]


def test_a_model_that_was_measured_twice_is_said():
    found = matched([point("org/a", name="one"), point("org/a", name="two")], ("org/a", None, 1.0))
    assert scores_of(found) == [1.0, 1.0]
    assert found.notes == ["measured several times, and each counts as a model: org/a"]


def test_numbers_and_names_as_people_write_them(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("Model;BBH;IFEval\n[org/a](https://huggingface.co/org/a);30,5;61,5%\norg/b;41,0;1.5\n")
    found = read_scores(path).table
    assert found.model.tolist() == ["org/a", "org/a", "org/b", "org/b"]
    assert found.score.tolist() == [30.5, 61.5, 41.0, 1.5]
    path.write_text('model,BBH\n"<a href=""https://x.org/a"">org/a</a>","1,234.5"\norg/b,41\norg/c,"1,234"\n')
    scores = read_scores(path)
    assert scores.table.score.tolist() == [1234.5, 41.0]  # 1,234 may be 1.234 or 1234
    assert scores.notes == ["cells that are no numbers count as missing: BBH (1)"]


def test_the_table_of_a_sweeps_tasks_is_refused_with_the_remedy(tmp_path):
    path = tmp_path / "scores.csv"
    path.write_text("checkpoint,model,revision,step,task,metric,value,stderr\na,b,,0,cloze,acc,0.25,0.1\n")
    with pytest.raises(InputError, match=r"has a line for each task.* give its folder evaluations"):
        read_scores(path)
