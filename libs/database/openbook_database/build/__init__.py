"""Building a snapshot: stages chunk, embed, add, finish over blocks, each resumable."""
