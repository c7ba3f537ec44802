"""Neighbours of a corpus in a snapshot, found once and kept: the cache that training reads instead of asking."""

from openbook_database.neighbours.cache import NeighbourCache

__all__ = ["NeighbourCache"]
