"""The errors a user can meet: one line that names the argument, what came, what was expected, the remedy."""


class SofthProbeError(Exception):
    """Base of every error that softh_probe raises on purpose; the command line shows it as one line, exit code 2."""


class InputError(SofthProbeError, ValueError):
    """An argument, a file or a data set is not what it has to be."""


class ProbeError(SofthProbeError, RuntimeError):
    """The forward pass did not give what the probe has to measure."""
