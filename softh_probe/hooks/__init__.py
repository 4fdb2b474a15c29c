"""Hooks: the modules they go to, and the recording of forward passes."""
