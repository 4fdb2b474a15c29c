"""Parts of fuzz_inputs.py: damage, and kinds of input with what is right where one is accepted."""
