"""Scores, and the records that intervals are made from."""
