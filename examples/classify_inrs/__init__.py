"""Which digit does a network show? `python -m examples.classify_inrs data=mnist` (see README.md)."""
