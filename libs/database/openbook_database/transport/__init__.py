"""Snapshots to and from object stores and shared folders, through fsspec."""
