"""Other estimators of I(X;Z) between labels and hidden states, beside soft entropy, and data whose truth is known."""
