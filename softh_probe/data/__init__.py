"""From a data set to documents, tokens and batches."""
