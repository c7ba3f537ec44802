"""Questions as a check of a snapshot: is what answers them among the first chunks that are found?"""
