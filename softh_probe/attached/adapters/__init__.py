"""Adapters: knowledge of other libraries about a model's tokens, one module a library.

An adapter is a function `install(model, tracker)` that returns a context manager. Inside the block it observes the
library and passes on what it sees; after the block everything is as it was. `ADAPTERS` serve every attached probe.
"""

from softh_probe.attached.adapters import generate, kv_cache, lm_eval, prompt_tuning

ADAPTERS = (kv_cache.install, generate.install, lm_eval.install, prompt_tuning.install)
