"""Fused operations, each beside the plain form that its test holds it to."""
