"""Checks: entries before a run, contracts of systems, equality of runs, retrieval against known-good tools."""
