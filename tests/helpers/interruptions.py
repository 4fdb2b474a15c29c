"""Runs that a signal stops."""

import os
import signal

import softh_probe.run.forward


def stop_after_three_batches(monkeypatch):
    """Send SIGTERM to this process as its next run takes the fourth batch."""
    original, calls = softh_probe.run.forward.pad_batch, iter(range(1000))

    def pad_batch(corpus, documents):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return original(corpus, documents)

    monkeypatch.setattr(softh_probe.run.forward, "pad_batch", pad_batch)
