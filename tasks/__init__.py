"""Corpora, questions, gold answers and training samples, and the scores of what systems answered."""
