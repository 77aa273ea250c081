"""The figures of a report, and the look that they share."""
