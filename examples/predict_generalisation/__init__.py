"""How accurate is a network, from its weights? `python -m examples.predict_generalisation` (see README.md)."""
