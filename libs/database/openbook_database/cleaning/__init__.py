"""What a build can leave out: duplicates, near-duplicates, and what overlaps with evaluation data."""
