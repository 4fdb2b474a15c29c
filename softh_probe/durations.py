"""Lengths of time, for readers."""


def duration(seconds: float) -> str:
    """Format a length of time.

    >>> duration(42), duration(200), duration(90_000), duration(400_000)
    ('42 s', '3 min', '25 h 00 min', '4.6 days')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    if seconds < 48 * 3600:
        return f"{int(seconds // 3600)} h {int(seconds % 3600 // 60):02d} min"
    return f"{seconds / 86400:.1f} days"
