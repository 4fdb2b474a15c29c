"""What fuzz_inputs.py is made of: damage, and kinds of input with what is right where one is accepted."""
