"""What systems share: readers, retrievers, models that live elsewhere, phrases, extraction, the passage graph."""
