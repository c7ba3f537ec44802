"""Indexes: recipes, training, writing, reading. `files` chooses by recipe, `base` is what search asks of one."""
