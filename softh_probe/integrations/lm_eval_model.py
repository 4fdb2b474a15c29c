"""A model type of lm-evaluation-harness that is measured while it is evaluated, and a command that knows it.

    softh-probe-lm-eval run --model hf-softh --model_args pretrained=EleutherAI/pythia-160m --tasks lambada_openai \\
        --output_path out

is `lm_eval` with one more model type, `hf-softh`: the harness's `hf`, whose arguments it takes, and those of
`SoftEntropyProbe`, with `softh_` before their names and `+` between several labels. The probe's result is saved
beside the harness's own, as a folder `softh_probe_DATE`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

try:
    from lm_eval import evaluator
    from lm_eval.__main__ import cli_evaluate
    from lm_eval.api.registry import register_model
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.models.huggingface import HFLM
except ImportError as error:
    raise ImportError(
        f"lm-evaluation-harness is not installed ({error}): pip install 'softh-probe[lm-eval]'"
    ) from error

from softh_probe.distributed import gather
from softh_probe.errors import ProbeError
from softh_probe.patching import replaced
from softh_probe.probe import SoftEntropyProbe
from softh_probe.result import ProbeResult

_PREFIX = "softh_"


@register_model("hf-softh")
class SoftEntropyLM(HFLM):
    """The harness's `HFLM` with a probe on its model.

    `lm.probe` holds what this process's requests have fed so far; `softh_probe.distributed.gather(lm.probe)` what all
    processes' have. Should the measurement fail, the evaluation goes on, and `lm.probe.result()` raises why.

    Args:
        arguments: those of `HFLM`; those with `softh_` before their names go to `SoftEntropyProbe`.
    """

    latest: SoftEntropyLM | None = None
    result: ProbeResult | None = None  # what all processes measured, when the command line has evaluated

    def __init__(self, *args: Any, **arguments: Any) -> None:
        settings = {
            name.removeprefix(_PREFIX): arguments.pop(name) for name in [*arguments] if name.startswith(_PREFIX)
        }
        if isinstance(labels := settings.get("labels"), str):
            settings["labels"] = [name for name in labels.split("+") if name]
        super().__init__(*args, **arguments)
        self.probe = SoftEntropyProbe(self.model, **settings)
        SoftEntropyLM.latest = self

    def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(super().loglikelihood, *args, **kwargs)

    def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(super().loglikelihood_rolling, *args, **kwargs)

    def generate_until(self, *args: Any, **kwargs: Any) -> Any:
        return self._measured(super().generate_until, *args, **kwargs)

    def _measured(self, answer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with suppress(ProbeError):  # said at the end of the evaluation
            with self.probe:
                answers = answer(*args, **kwargs)
        return answers


def measured(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Evaluate, then bring together what all processes measured."""
    answers = original(*args, **kwargs)
    if (lm := SoftEntropyLM.latest) is not None:
        try:
            lm.result = (gather(lm.probe) if lm.world_size > 1 else lm.probe).result()
        except ProbeError as problem:
            warnings.warn(f"soft entropy was not measured: {problem}", stacklevel=2)
    return answers


def save_beside(original: Callable[..., Any], tracker: Any, *args: Any, **kwargs: Any) -> None:
    """Save the probe's result where a tracker of the harness has saved its own."""
    original(tracker, *args, **kwargs)
    lm = SoftEntropyLM.latest
    if lm is None or lm.result is None or not tracker.output_path:
        return
    path = Path(tracker.output_path)
    is_file = path.suffix == ".json"
    folder = path.parent if is_file else path / str(tracker.general_config_tracker.model_name_sanitized)
    to = folder / f"softh_probe_{tracker.date_id}"
    lm.result.save(to)
    print(f"softh_probe: {lm.result.info['positions']:,} positions in {len(lm.result.rows)} layers, saved to {to}")


def main() -> None:
    """`lm_eval`'s command line, with `--model hf-softh`."""
    with replaced(evaluator, "evaluate", measured), replaced(EvaluationTracker, "save_results_aggregated", save_beside):
        cli_evaluate()


if __name__ == "__main__":
    main()
