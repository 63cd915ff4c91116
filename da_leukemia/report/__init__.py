"""The matrix as tables, pictures and one HTML page."""
