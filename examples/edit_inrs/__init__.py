"""Editing what a network shows through its weights: `python -m examples.edit_inrs data=mnist` (see README.md)."""
