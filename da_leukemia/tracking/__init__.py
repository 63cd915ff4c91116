"""Telling an experiment tracker what happened; never asking it."""
