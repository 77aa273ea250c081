"""Memory Sparse Attention (arXiv 2603.23516): model, memory bank, training and generation."""
