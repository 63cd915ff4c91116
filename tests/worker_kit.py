"""What the tests of the worker share: a method that adapts nothing, and one that adapts."""

from __future__ import annotations

from da_leukemia.adaptation.settings import Method

FAIR = Method()
ADAPTED = Method(
    components=[
        {"name": "adversarial"},
        {"name": "mean_teacher", "burn_in": 0.0, "ramp": 0.0, "threshold": 0.011},
    ]
)
