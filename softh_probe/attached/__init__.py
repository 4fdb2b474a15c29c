"""Labels of tokens that other code feeds to the model."""
