"""Parts of train_and_sweep.py: texts and training, the cloze task, the picture."""
