"""From scored cells to the report: statistics, verdicts, tables, figures, HTML and the Weights & Biases mirror."""
