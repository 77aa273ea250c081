"""Results in the formats of other tools: TREC runs and qrels, logs of inspect_ai, results and samples of lm-eval."""
