"""What a user copies: each folder is one example with a page of its own (see README.md)."""
