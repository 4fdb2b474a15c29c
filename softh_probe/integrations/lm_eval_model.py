r"""The model type `hf-softh` of lm-evaluation-harness: a model that is probed while it is evaluated.

    softh-probe-lm-eval run --model hf-softh --model_args pretrained=EleutherAI/pythia-160m --tasks lambada_openai \
        --output_path out

The command is `lm_eval` with this model type registered. `hf-softh` takes the arguments of the harness's `hf`, and
those of `SoftEntropyProbe`, with `softh_` before their names and `+` between several labels, layers or positions; they
are checked before the model is loaded. `softh_positions=completion` counts the tokens of continuations as far as they
are fed (all but the last), and those that `generate_until` writes; `softh_skip_special_tokens=True` leaves out the
tokenizer's special tokens. Requests whose tokens that are fed are the same (answers of one token to one question) are
one forward pass to the harness, and count once, as the one with the longest continuation; with `logits_cache=False` it
feeds each, and each counts. The probe's result is saved beside the harness's own, in a folder `softh_probe_DATE`. It
knows the model's arguments, the tasks, their numbers of examples, and the limit (`info["evaluation"]`).
"""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from torch import distributed as dist

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
from softh_probe.errors import InputError, ProbeError
from softh_probe.integrations.lm_eval_settings import HarnessProbe, split_settings
from softh_probe.models.origin import describe_tokenizer
from softh_probe.patching import replaced
from softh_probe.result import ProbeResult

#: Names of the arguments of `HFLM`, in their order.
_POSITIONAL = tuple(inspect.signature(HFLM).parameters)
#: Arguments of `evaluate` that change what a model is asked.
_OF_PROMPTS = ("limit", "samples", "system_instruction", "apply_chat_template", "fewshot_as_multiturn")


@register_model("hf-softh")
class SoftEntropyLM(HFLM):
    """The harness's `HFLM` with a probe on its model.

    If the measurement fails, the evaluation continues, and `lm.probe.result()` raises the error.

    Args:
        arguments: those of `HFLM`; those with `softh_` before their names are passed to `SoftEntropyProbe`.

    Raises:
        InputError: an argument of the probe is unknown, or its value is wrong; the model has not been loaded.

    Attributes:
        probe: measures the requests of this process; `softh_probe.distributed.gather(lm.probe)` merges the probes of
            all processes.
        result: the result of all processes, once the command has evaluated; None before.
        latest: the model that was created last.
        given: the arguments of `HFLM` that are text or numbers.
    """

    latest: SoftEntropyLM | None = None
    result: ProbeResult | None = None

    def __init__(self, *args: Any, **arguments: Any) -> None:
        settings, arguments = split_settings(arguments, theirs=inspect.signature(HFLM).parameters)
        named = dict(zip(_POSITIONAL, args, strict=False)) | arguments
        self.given = {name: value for name, value in named.items() if isinstance(value, str | int | float)}
        super().__init__(*args, **arguments)
        if settings.get("skip_special_tokens") is True:
            settings["skip_special_tokens"] = self.tokenizer
        self.probe = HarnessProbe(self.model, **settings)
        SoftEntropyLM.latest = self

    def loglikelihood(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as `HFLM.loglikelihood` does, and measure."""
        return self._measured(super().loglikelihood, *args, **kwargs)

    def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as `HFLM.loglikelihood_rolling` does, and measure."""
        return self._measured(super().loglikelihood_rolling, *args, **kwargs)

    def generate_until(self, *args: Any, **kwargs: Any) -> Any:
        """Answer as `HFLM.generate_until` does, and measure."""
        return self._measured(super().generate_until, *args, **kwargs)

    def _measured(self, answer: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        with suppress(ProbeError):  # raised again by result() at the end of the evaluation
            with self.probe:
                answers = answer(*args, **kwargs)
        return answers


def measured(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Evaluate, then merge the measurements of all processes into the result; a wrapper of `evaluator.evaluate`."""
    answers = original(*args, **kwargs)
    if (lm := SoftEntropyLM.latest) is not None:
        try:
            lm.result = (gather(lm.probe) if lm.world_size > 1 else lm.probe).result()
            record_evaluation(lm, answers, kwargs)
        except ProbeError as problem:
            warnings.warn(f"soft entropy was not measured: {problem}", stacklevel=2)
    return answers


def record_evaluation(lm: SoftEntropyLM, answers: Any, asked: Mapping[str, Any]) -> None:
    """Record in the result which model was evaluated on what, as far as the harness knows.

    Args:
        lm: with its result.
        answers: what `evaluate` returned; None in all processes but the first.
        asked: the arguments of `evaluate`.
    """
    if lm.result is None:
        return
    answers = answers or {}
    info = lm.result.info
    info["evaluation"] = {
        "by": "lm-evaluation-harness",
        "version": version("lm_eval"),
        "model_args": lm.given,
        "tasks": sorted(answers.get("configs", {})),
        "n_shot": dict(answers.get("n-shot", {})),
        "n_samples": {task: counts["effective"] for task, counts in answers.get("n-samples", {}).items()},
        **{name: asked[name] for name in _OF_PROMPTS if asked.get(name) not in (None, False)},
    }
    info["tokenizer"] = describe_tokenizer(lm.tokenizer)
    info["model"] |= {
        "model": lm.given.get("pretrained") or info["model"]["model"],
        "revision": lm.given.get("revision") if lm.given.get("revision") != "main" else None,
        "gguf_file": lm.given.get("gguf_file"),
    }


def save_beside(original: Callable[..., Any], tracker: Any, *args: Any, **kwargs: Any) -> None:
    """Save the harness's results, then the probe's beside them; a wrapper of `save_results_aggregated`."""
    original(tracker, *args, **kwargs)
    lm = SoftEntropyLM.latest
    if lm is None or lm.result is None or not tracker.output_path or _rank() != 0:
        return
    path = Path(tracker.output_path)
    is_file = path.suffix == ".json"
    folder = path.parent if is_file else path / str(tracker.general_config_tracker.model_name_sanitized)
    to = folder / f"softh_probe_{tracker.date_id}"
    lm.result.save(to)
    # Output of the command softh-probe-lm-eval, after the harness's own.
    print(f"softh_probe: {lm.result.info['positions']:,} positions in {len(lm.result.rows)} layers, saved to {to}")


def _rank() -> int:
    """Give the number of this process; of those that hold one model between them, the harness calls each the first."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def main() -> None:
    """Run `lm_eval`'s command line, with `--model hf-softh`."""
    with replaced(evaluator, "evaluate", measured), replaced(EvaluationTracker, "save_results_aggregated", save_beside):
        try:
            cli_evaluate()
        except InputError as error:
            sys.exit(f"softh-probe-lm-eval: {error}")


if __name__ == "__main__":
    main()
