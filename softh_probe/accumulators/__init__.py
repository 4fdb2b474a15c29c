"""Running sums of soft assignments, per layer and per label."""
