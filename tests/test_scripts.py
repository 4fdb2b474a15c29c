"""The example programs run and show what they promise."""

import json
import math
import re
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture
def checkpoint(model, tokenizer, tmp_path):
    """A tiny checkpoint and a file of texts, of which the script's own folder keeps clear."""
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "texts.txt").write_text("a b c d e f\ng h i\nj k l m n o p q\nx y z a b c\n")
    return tmp_path


def output_of(script, *arguments, folder):
    command = [sys.executable, str(ROOT / "scripts" / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("script", ["probe_checkpoint.py", "attach_generate.py"])
def test_texts(script, checkpoint):
    printed = output_of(script, checkpoint / "model", checkpoint / "texts.txt", folder=checkpoint)
    assert re.search(r"^[1-9]\d* positions$", printed, re.MULTILINE)
    assert printed.count("mutual_information_null") == 12  # of five layers and their mean


def test_training(checkpoint):
    printed = output_of("attach_trainer.py", checkpoint / "model", checkpoint / "texts.txt", folder=checkpoint)
    assert re.search(r"eval_entropy/layer\.1: 0\.\d+ before, 0\.\d+ after", printed)
    assert "eval_mutual_information_output_unigram/final_norm" in printed


def test_lm_eval(checkpoint, task):
    printed = output_of("attach_lm_eval.py", checkpoint / "model", "letters", task, folder=checkpoint)
    assert "acc,none" in printed
    assert (checkpoint / "out" / "lm_eval" / "layers.csv").is_file()


def test_digits_layers_say_more_about_the_class_after_training():
    pytest.importorskip("sklearn")
    done = subprocess.run([sys.executable, "scripts/digits.py"], capture_output=True, text=True, check=True)
    before, after = done.stdout.splitlines()
    values = [[float(v) for v in re.findall(r"fc\d ([\d.]+)", line)] for line in (before, after)]
    assert all(len(v) == 3 for v in values)
    assert all(trained > untrained for untrained, trained in zip(*values, strict=True))
    assert max(values[1]) < 3.33  # log2(10): no more can be said about the digit
    assert float(re.search(r"accuracy ([\d.]+)", after)[1]) > 0.9


def test_a_meters_memory_stays_flat(tmp_path):
    printed = output_of("load_meter.py", "--positions", 120_000, "--label-rows", 1024, folder=tmp_path).splitlines()
    assert [int(line.split()[0].replace(",", "")) // 10_000 for line in printed] == [3, 6, 12]


def test_faults_cost_no_result():
    done = subprocess.run(
        [sys.executable, "scripts/fault_campaign.py", "--kills", "5", "--seed", "1"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert len(re.findall("all exact$|skipped", done.stdout, re.MULTILINE)) == 6, done.stdout
    assert "5 kills" in done.stdout


def test_bad_inputs_end_in_a_result_or_in_one_line(tmp_path):
    command = [sys.executable, str(ROOT / "scripts/fuzz_inputs.py"), "--cases", "250", "--seed", "1", "--keep", "kept"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    cases, results, refusals, problems = map(
        int, re.search(r"^all((?: +\d+){4})$", done.stdout, re.MULTILINE)[1].split()
    )
    assert cases > 240
    assert problems == 0
    assert results > 50
    assert refusals > 100


def test_the_fuzzer_notices_a_wrong_number_a_traceback_and_a_hang(tmp_path):
    """A package that goes wrong on purpose, in three ways."""
    broken = tmp_path / "broken.py"
    broken.write_text(
        "import sys, time\n"
        f"sys.path.insert(0, {str(ROOT / 'scripts')!r})\n"
        "import fuzz_inputs, fuzzing.documents as documents\n"
        "from softh_probe.data.documents import Document\n"
        "ways = iter([lambda: [Document(content='else')], lambda: 1 / 0, lambda: time.sleep(9)])\n"
        "documents.read_documents = lambda *a, **k: next(ways)()\n"
        "fuzz_inputs.SECONDS = 0.5\n"
        "sys.argv = ['', '--only', 'txt', '--cases', '3']\n"
        "sys.exit(fuzz_inputs.main())\n"
    )
    done = subprocess.run([sys.executable, str(broken)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 1, done.stderr[-2000:]
    for said in ("WrongError: 1 documents, another reader finds", "ZeroDivisionError", "TooLong: more than"):
        assert said in done.stdout
    assert len(list((tmp_path / "out/fuzz").glob("txt-0-*/case.txt"))) == 3


def test_the_benchmark_of_gpus_runs_with_few_packages(tmp_path):
    blocked = (
        "datasets",
        "pyarrow",
        "jsonargparse",
        "accelerate",
        "submitit",
        "matplotlib",
        "plotly",
        "gguf",
        "jinja2",
    )
    options = ["--shape", "tiny", "--device", "cpu", "--sequences", "2", "--tokens", "64", "--batches", "4"]
    program = f"""
import importlib.util, runpy, sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name.split(".")[0] in {blocked} else find(name, package)
sys.path.insert(0, "{ROOT / "scripts"}")
sys.argv = ["benchmark_gpu.py", *{options}, "--out", "found.json"]
runpy.run_path("{ROOT / "scripts" / "benchmark_gpu.py"}", run_name="__main__")
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads((tmp_path / "found.json").read_text())["conditions"]
    assert found["probe, 8 sets"]["batch_ms"] > found["backbone"]["batch_ms"] > 0
    assert found["probe, 1 set"]["hooks_host_us_per_layer"] > 0 == found["backbone"]["hooks_host_us_per_layer"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--device", "gpu"], "--device: expected cpu, cuda or cuda:N, got gpu"),
        (["--device", "cuda:99"], "--device: torch finds no cuda:99 here"),
        (["--blocks", "0"], "--blocks: expected 1 or more, got 0"),
        (["--tokens", "7"], "--tokens: expected 8 or more, got 7"),
        (["--sequences", "0"], "--sequences: expected 1 or more, got 0"),
    ],
)
def test_the_benchmark_of_gpus_says_in_a_line_what_it_cannot_do(tmp_path, options, said):
    command = [sys.executable, ROOT / "scripts" / "benchmark_gpu.py", "--shape", "tiny", "--device", "cpu", *options]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1].endswith(said)
    assert "Traceback" not in done.stderr


def test_models_trained_here_become_points(tmp_path, monkeypatch):
    """Two tiny models, three checkpoints each: trained, swept, evaluated, correlated, drawn; and not trained twice."""
    printed = output_of("train_and_sweep.py", "--quick", "--out", tmp_path / "out", folder=tmp_path)
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} >= {"train_and_sweep.png", "train_and_sweep.svg", "models", "sweep"}
    assert "40 items of the cloze task" in printed
    for name in ("small", "large"):
        losses = json.loads((out / "models" / name / "training.json").read_text())
        assert [at["step"] for at in losses] == [0, 1, 20]
        assert losses[0]["loss"] > losses[1]["loss"] > losses[2]["loss"]
        assert losses[0]["loss"] == pytest.approx(math.log(512), abs=0.1)  # of 512 tokens, it knows nothing
    table = pd.read_parquet(out / "sweep" / "sweep.parquet")
    assert table[table.name == "mean"].checkpoint.nunique() == 6
    assert len(list((out / "sweep" / "evaluations").glob("*/results_*.json"))) == 6
    correlations = pd.read_csv(out / "sweep" / "correlations.csv")
    of_optimality = correlations[(correlations.metric == "optimality") & (correlations.label_set == "unigram")]
    assert set(of_optimality.n) == {6}

    monkeypatch.syspath_prepend(ROOT / "scripts")
    from small_models.training import Plan, cut, read_texts
    from train_and_sweep import prepare, train_all

    weights = out / "models" / "small" / "checkpoint-20" / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    plan = Plan(**json.loads((out / "plan.json").read_text()))
    prepare(out, plan, overwrite=False)
    train_all(out, plan, cut(read_texts(None)))
    assert weights.stat().st_mtime_ns == trained
    with pytest.raises(SystemExit, match="made with other settings"):
        prepare(out, replace(plan, steps=21), overwrite=False)


def test_items_of_the_cloze_task_are_words_of_the_text_held_out(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    from small_models.cloze import write_cloze
    from small_models.training import cut, read_texts, train_tokenizer, write_texts

    train, held_out = write_texts(tmp_path, cut(read_texts(None)))
    paragraphs = {line for text in train for line in text.splitlines()}
    assert not any(line in paragraphs for text in held_out for line in text.splitlines() if line)
    n = write_cloze(tmp_path, train, held_out, train_tokenizer(train, 2048), 400)
    items = list(map(json.loads, (tmp_path / "cloze.jsonl").read_text().splitlines()))
    assert len(items) == n == 400
    words, seen = " ".join(held_out).split(), " ".join(train).split()
    read = " ".join(words)
    for item in items:
        assert len(set(item["choices"])) == 4
        assert f"{item['context']} {item['choices'][item['answer']]}" in read
    often = Counter(seen)  # guessing the most frequent word is hardly better than chance
    guessed = [max(range(4), key=lambda i: often[item["choices"][i]]) == item["answer"] for item in items]
    assert 0.15 < sum(guessed) / n < 0.35
    assert {item["answer"] for item in items} == {0, 1, 2, 3}
