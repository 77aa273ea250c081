"""Memory Sparse Attention (arXiv 2603.23516): model, memory bank, training and generation.

A package imports itself and those before it: ops (what multiplies, and in which precision), model (the decoder, its
prompts and losses), checkpoints, memory (banks), generation, training, bench. No file imports in a circle.
"""
