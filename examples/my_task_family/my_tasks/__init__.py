"""Task families of your own."""

from my_tasks.spirals import Spirals

__all__ = ["Spirals"]
