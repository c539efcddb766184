"""Results in; figures, tables and one HTML page out. Needs no model and no torch.

Modules, each imported where it is needed so that importing the package itself costs nothing:
`verdict` (sentences), `tables` (tidy DataFrames), `figures` (matplotlib), `page` (the report).
"""
