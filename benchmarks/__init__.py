"""Timings that are reported, never asserted."""
