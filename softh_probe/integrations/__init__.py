"""Entry points of other frameworks: the Trainer, lm-evaluation-harness."""
