"""The commands that the Snakefile runs: prose, tokenizer, corpora and questions, training samples, judging, scoring."""
