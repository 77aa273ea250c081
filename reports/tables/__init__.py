"""The tables of a report, each made once and shown on the page, in Markdown and as CSV."""
