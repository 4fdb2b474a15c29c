"""Checkpoints and models: loading, placement, identity."""
