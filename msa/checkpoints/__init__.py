"""Checkpoints: weights and tokenizers in other programs' formats and ours, read, written, converted, verified."""
