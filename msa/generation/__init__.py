"""Generation: decoding, Memory Interleave, and the backbone as plain reader, scorer and embedder."""
