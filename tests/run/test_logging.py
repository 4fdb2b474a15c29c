"""Stage lines and warnings: on standard error where progress is asked for, else in the application's own handlers."""

import logging

import pytest

from softh_probe.redaction import LOGGER, log_to_stderr
from softh_probe.run import run

STAGES = ["corpus", "plan", "model", "sums"]


class Records(logging.Handler):
    def __init__(self):
        super().__init__()
        self.lines = []

    def emit(self, record):
        self.lines.append((record.levelname, record.name, record.getMessage()))


@pytest.fixture
def records():
    """A handler of the application on the package's logger."""
    handler = Records()
    LOGGER.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    yield handler
    LOGGER.removeHandler(handler)
    LOGGER.setLevel(logging.NOTSET)


def stages(text):
    return [line.split(":")[0] for line in text.splitlines() if line.split(":")[0] in STAGES]


def test_progress_shows_each_stage_once_and_leaves_no_handler(config, capsys):
    before = list(LOGGER.handlers)
    run(config())
    assert stages(capsys.readouterr().err) == STAGES
    assert LOGGER.handlers == before
    assert LOGGER.level == logging.NOTSET


def test_without_progress_a_run_is_silent(config, capsys):
    run(config(), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("progress", [True, False])
def test_the_applications_handler_gets_the_lines_and_standard_error_does_not(config, capsys, records, progress):
    run(config(), progress=progress)
    assert stages("\n".join(text for _, _, text in records.lines)) == STAGES
    assert {name.rpartition(".")[0] for _, name, _ in records.lines} == {"softh_probe.run"}
    assert stages(capsys.readouterr().err) == []


def test_levels_secrets_and_tracebacks(capsys, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", "thisisnobodysbusiness")
    logger = logging.getLogger("softh_probe.sweep.measure")
    with log_to_stderr(), log_to_stderr():  # the inner one adds nothing
        logger.info("with thisisnobodysbusiness")
        logger.warning("slow")
        try:
            raise ValueError("thisisnobodysbusiness")
        except ValueError:
            logger.exception("no result")
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == ["with [secret]", "warning: slow", "error: no result"]
    assert lines[-1] == "ValueError: [secret]"


def test_lines_are_shown_once_where_the_root_logger_has_a_handler(capsys):
    root = Records()
    logging.getLogger().addHandler(root)
    try:
        with log_to_stderr():
            logging.getLogger("softh_probe.run").warning("slow")
        logging.getLogger("softh_probe.run").warning("slower")
    finally:
        logging.getLogger().removeHandler(root)
    assert capsys.readouterr().err == "warning: slow\n"
    assert [message for *_, message in root.lines] == ["slower"]
