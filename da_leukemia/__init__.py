"""Measure and repair the failure of leukemia detectors across microscopes and phones."""

from __future__ import annotations

__version__ = "0.1.0"
