"""The report of an evaluation: table, pictures and page."""
