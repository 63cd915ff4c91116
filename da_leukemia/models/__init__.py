"""Detectors and their parts: plain modules that know no domain."""
