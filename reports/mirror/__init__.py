"""The mirror of a results directory in Weights & Biases: what its runs hold (runs), and how they get there (writer)."""
