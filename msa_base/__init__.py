"""The bottom layer: records, tables, configuration, paths, prompts and errors that every other package imports."""
