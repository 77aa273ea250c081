"""The memory: documents encoded into a bank, kept in tiers or shards, routed over by questions."""
