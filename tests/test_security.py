"""Limits of data, checkpoints and configurations: they run no code, write nowhere else, carry no secrets into files.

The formats of the package are JSON, safetensors, Parquet, CSV and YAML by its safe loader; none is a pickle. Two
libraries pickle among processes of one user: submitit the jobs of a sweep (work/jobs in its folder: the sweep's
configuration and its checkpoints, read back by the job alone), torch.distributed and multiprocessing what processes of
one run tell each other. Weights that are pickles, and code of checkpoints, are tested in test_checkpoint.py.
"""

import ast
import dataclasses
import json
import os
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import softh_probe
from softh_probe import ProbeResult
from softh_probe.cli import main
from softh_probe.config import RunConfig, config_yaml
from softh_probe.errors import InputError
from softh_probe.redaction import redacted
from softh_probe.report.page import write_report
from softh_probe.run import run
from softh_probe.sweep.config import SweepConfig
from softh_probe.sweep.folder import SweepFolder
from softh_probe.sweep.grid import expand
from tests.helpers.corpora import TEXTS
from tests.helpers.sweeps import sweep_command

ROOT = Path(softh_probe.__file__).parents[1]

# --- no code from data -------------------------------------------------------------------------------------------

PICKLES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
#: Modules that may import one, and why.
ALLOWED = {
    ("softh_probe/models/loading_errors.py", "pickle"): "the error that torch raises for a pickled file that it refuses"
}
CALLS = {"eval", "exec", "compile", "__import__"}
METHODS = {
    *("torch.save", "os.system", "os.popen", "read_pickle", "to_pickle", "unpack_archive", "extractall"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "yaml.dump", "tempfile.mktemp"),
}


def dangers(source: str, name: str = "") -> list[str]:
    """Constructs that could run code from data: pickles, evaluated text, shells, unpacked archives."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            found += [m for m in modules if m.split(".")[0] in PICKLES and (name, m) not in ALLOWED]
        if not isinstance(node, ast.Call):
            continue
        called, keywords = ast.unparse(node.func), {k.arg: ast.unparse(k.value) for k in node.keywords}
        if called in CALLS or any(called == m or called.endswith(f".{m}") for m in METHODS):
            found.append(called)
        if called.endswith("torch.load") and keywords.get("weights_only") != "True":
            found.append("torch.load without weights_only")
        if "True" in (keywords.get("allow_pickle"), keywords.get("shell"), keywords.get("trust_remote_code")):
            found.append(f"{called}: {keywords}")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from joblib import load",
        "def f():\n    import cloudpickle.x",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.save(x, path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text, yaml.Loader)",
        "eval(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "tarfile.open(path).extractall(folder)",
    ],
)
def test_dangers_are_seen(source):
    assert len(dangers(source)) == 1


@pytest.mark.parametrize("folder", ["softh_probe", "scripts"])
def test_nothing_here_runs_code_from_data(folder):
    programs = sorted((ROOT / folder).rglob("*.py"))
    assert len(programs) > 8
    found = {str(path): what for path in programs if (what := dangers(path.read_text(), str(path.relative_to(ROOT))))}
    assert not found


def test_a_result_of_every_kind_of_file_is_no_pickle(config, tmp_path):
    run(config(report=True, cache=str(tmp_path / "cache"), snapshot_minutes=1e-9), progress=False)
    kinds = {path.suffix for path in [*(tmp_path / "out").rglob("*"), *(tmp_path / "cache").rglob("*")]}
    assert kinds == {".csv", ".html", ".json", ".parquet", ".png", ".safetensors", ".svg", ".yaml"}


@pytest.mark.parametrize("command", ["run", "sweep"])
def test_a_configuration_runs_no_code(command, config, tmp_path, capsys):
    path = tmp_path / "config.yaml"
    path.write_text(config_yaml(config()) + f"subset: !!python/object/apply:os.mkdir [{tmp_path}/made]\n")
    assert main([command, "--config", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "made").exists()


def test_a_chat_template_reaches_no_internals(config, checkpoint, tmp_path, capsys):
    """A tokenizer's template is a program; it runs in jinja's sandbox."""
    model = tmp_path / "model"
    model.mkdir()
    for file in checkpoint.iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    (model / "chat_template.jinja").write_text("{{ ''.__class__.__mro__[1].__subclasses__() }}")
    data = tmp_path / "chat.jsonl"
    data.write_text(json.dumps({"messages": [{"role": "user", "content": "hello"}]}) + "\n")
    with pytest.raises(InputError, match="its chat template does not take document 1: access to attribute"):
        run(config(model=str(model), data=str(data)), progress=False)


@pytest.mark.slow
def test_code_of_a_checkpoint_is_off_by_default_and_named_where_it_is_on(config, tmp_path):
    assert RunConfig.__dataclass_fields__["trust_remote_code"].default is False
    assert SweepConfig.__dataclass_fields__["trust_remote_code"].default is False
    warning = "Python code that comes with the checkpoint was allowed to run (trust_remote_code)"
    for on in (False, True):
        result = run(config(trust_remote_code=on, overwrite=True, out=str(tmp_path / str(on))), progress=False)
        info = json.loads((tmp_path / str(on) / "result.json").read_text())
        assert info["config"]["trust_remote_code"] is info["model"]["trust_remote_code"] is on
        assert (warning in info["warnings"]) is (warning in result.info["warnings"]) is on
        page = write_report([tmp_path / str(on)], tmp_path / f"{on}.html").read_text()
        assert (warning in page) is ("code of the checkpoint" in page) is on


# --- nothing is written elsewhere ----------------------------------------------------------------------------------

HOSTILE = ["../../escaped", "/tmp/escaped", "..", ".", "x" * 3000, "𝒳" * 100, "CON", "a/b", "a b", "a:b", "A_B"]


def files_below(folder: Path) -> dict[str, tuple[int, int]]:
    return {
        str(path.relative_to(folder)): (stat.st_size, stat.st_mtime_ns)
        for path in folder.rglob("*")
        if (stat := path.lstat()) and not path.is_dir()
    }


@pytest.mark.slow
def test_names_of_columns_and_labels_stay_in_the_output_folder(config, tmp_path):
    rows = [{"text": text, **dict.fromkeys(HOSTILE, [*HOSTILE[:4], "a\0b"][i % 5])} for i, text in enumerate(TEXTS)]
    data = tmp_path / "data" / "texts.jsonl"
    data.parent.mkdir()
    data.write_text("\n".join(map(json.dumps, rows)))
    # A folder of data may hold links: to files elsewhere, into circles, to nothing.
    (data.parent / "linked.jsonl").symlink_to(data)
    (data.parent / "circle").symlink_to(data.parent)
    (data.parent / "nothing.jsonl").symlink_to(tmp_path / "nothing")
    labels = ["input_unigram", *(f"column:{name}" for name in HOSTILE)]
    before = files_below(tmp_path.parent)
    run(
        config(
            data=str(data.parent), labels=labels, per_label=["input_unigram"], report=True, cache=str(tmp_path / "c")
        ),
        progress=False,
    )
    after = files_below(tmp_path.parent)
    here = tmp_path.name
    assert before.items() <= after.items()
    new = {path for path in after if path not in before}
    assert all(re.fullmatch(rf"{here}/(out|c)/[^/]+", path) for path in new), new
    result = ProbeResult.load(tmp_path / "out")
    assert set(result.label_sets) == set(labels)
    # Each column has a figure of its own.
    assert len(list((tmp_path / "out").glob("entropy_by*.svg"))) == len(labels)


def test_names_of_checkpoints_stay_in_the_sweeps_folder(tmp_path):
    config = SweepConfig(
        model=["own/model", "other/model"], revision=HOSTILE, data=str(tmp_path), out=str(tmp_path / "out")
    )
    with pytest.raises(InputError, match="revision: expected a name, got one that holds a NUL character"):
        dataclasses.replace(config, revision="a\0b")
    points, folder = expand(config), SweepFolder(config.out)
    assert len({point.folder.casefold() for point in points}) == 2 * len(HOSTILE)
    for point in points:
        places = (
            folder.result(point),
            folder.log(point),
            folder.failure_path(point),
            folder.claims._path(point.folder),
        )
        expected = (folder.checkpoints, folder.logs, folder.work / "failures", folder.claims.folder)
        assert tuple(path.parent for path in places) == expected
        assert all(path.resolve().is_relative_to(folder.path) for path in places)
        assert all(len(os.fsencode(path.name)) < 200 and path.name.isprintable() for path in places)
        assert point.folder[0] not in ".-"
    folder.start(config, points)
    for point in points[:3]:
        folder.record(point, "../../x", retries=0)
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


# --- secrets -------------------------------------------------------------------------------------------------------

TOKEN = "hf_" + "NobodysBusiness" * 2


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model", f"https://user:{TOKEN}@hub.example/own/model"),
        ("data", "https://user:sesame@hub.example/data"),
        ("revision", [TOKEN]),
        ("slurm_setup", ["module load cuda", f"export HF_TOKEN={TOKEN}"]),
        ("slurm_options", {"export": f"ALL,HF_TOKEN={TOKEN}"}),
        ("slurm_setup", ["export PASS=of-the-environment"]),
        ("out", f"out/{TOKEN}"),
    ],
)
def test_a_configuration_with_a_secret_is_refused_without_telling_it(field, value, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("MY_API_TOKEN", "of-the-environment")
    path = tmp_path / "sweep.yaml"
    path.write_text(
        yaml.safe_dump({"model": "own/model", "data": "own/data", "out": str(tmp_path / "o"), field: value})
    )
    assert main(["sweep", "--config", str(path)]) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(f"softh-probe: {field}: holds a secret (an access token, or a password in a URL)")
    assert "Business" not in printed
    assert "sesame" not in printed
    assert "environment;" not in printed
    assert {p.name for p in tmp_path.iterdir()} == {"sweep.yaml"}


def test_what_is_no_secret_is_let_through(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_TOKEN", "")
    monkeypatch.setenv("HF_TOKEN_PATH", str(tmp_path))
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "checkpoints")
    for value in ("out/checkpoints", "own/hf_model", "ssh://git@host/x", str(tmp_path), "s3://bucket/key"):
        assert RunConfig(model="a/b", data=value, out="o").data == value


def test_values_of_secret_variables_and_their_parts_are_redacted(monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "correct horse")
    monkeypatch.setenv("OTHER_PASSWORD", "correct horse battery")
    assert redacted("a correct horse battery, a correct horse") == "a [secret], a [secret]"


@pytest.fixture
def refusing_hub():
    """The address, with a password in it, of a server that has nothing for anybody."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(403)
            self.send_header("Content-Length", "0")
            self.end_headers()

        do_HEAD = do_GET

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:PasswordOfNobody@127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


@pytest.mark.slow
def test_secrets_land_in_no_file_of_a_sweep_nor_of_what_fails_in_it(
    config_file, training, tmp_path, monkeypatch, refusing_hub
):
    """Job pickles, logs with tracebacks, claims, results, the page."""
    secrets = {"HF_TOKEN": TOKEN, "WANDB_API_KEY": "f00dfeedf00dfeed"}
    for name, value in {**secrets, "HF_ENDPOINT": refusing_hub, "HF_HUB_OFFLINE": "0"}.items():
        monkeypatch.setenv(name, value)
    models = [str(training / "run" / "checkpoint-1"), "own/absent"]
    done = sweep_command(config_file(model=models, retries=0, workers=1))
    assert done.returncode == 1, done.stderr
    assert "1 done, 1 failed" in done.stdout
    files = [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    pickled = b"".join(file.read_bytes() for file in files if file.suffix == ".pkl")
    assert b"own/absent" in pickled
    assert os.environ["PATH"].encode() not in pickled  # no job's environment
    assert any("Traceback" in file.read_text() for file in files if file.suffix == ".log")
    for secret in (*secrets.values(), "PasswordOfNobody"):
        assert secret not in done.stdout + done.stderr
        assert not [file for file in files if secret.encode() in file.read_bytes()]
