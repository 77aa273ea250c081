"""The drivers: commands that build indexes, run cells, measure latency and tune, and the record of each."""
