"""The bottom layer: records, table schemas, prompt strings and configuration that every stage shares."""
