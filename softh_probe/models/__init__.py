"""From a checkpoint to a model: loading, placement, identity."""
