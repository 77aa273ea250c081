"""Training: samples, traces, losses, and the phases of one model."""
