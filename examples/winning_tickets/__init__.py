"""Which weights of an untrained network are worth keeping? `python -m examples.winning_tickets` (see README.md)."""
