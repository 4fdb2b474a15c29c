"""What other code that runs a model knows of its tokens, told to the probe while it is attached; a file for each.

An adapter is a function `(model, tracker)` that gives a context manager: inside it the adapter listens, after it
everything is as it was. `ADAPTERS` are those that every attached probe uses.
"""

from softh_probe.attached.adapters import generate, kv_cache, lm_eval, prompt_tuning

ADAPTERS = (kv_cache.install, generate.install, lm_eval.install, prompt_tuning.install)
