"""Where the hooks go, and what they do in a forward pass."""
