"""Plan, ledger, executors and the matrix."""
