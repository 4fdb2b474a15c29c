"""Labels of a corpus that is known before the forward pass."""
