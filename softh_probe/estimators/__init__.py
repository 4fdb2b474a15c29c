"""Pure functions of the estimator: temperature, anchors, soft entropy, bias correction."""
