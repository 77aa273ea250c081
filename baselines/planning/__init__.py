"""Planning: what models, indexes and cells cost, and what a machine cannot hold."""
