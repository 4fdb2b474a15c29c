"""What other code that runs a model knows of its tokens, told to the probe while it is attached; a file for each.

An adapter is a function `(model, feed)` that gives a context manager: inside it the adapter listens, after it
everything is as it was. `ADAPTERS` are those that every attached probe uses.
"""

from softh_probe.integrations import caches, generation, lm_eval, prompts

ADAPTERS = (caches.follow, generation.follow, lm_eval.follow, prompts.follow)
