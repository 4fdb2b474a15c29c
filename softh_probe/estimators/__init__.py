"""The estimator as pure functions on tensors: temperature, anchors, soft entropy, bias correction."""
