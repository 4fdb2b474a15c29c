"""Data sets: documents, tokens and batches."""
