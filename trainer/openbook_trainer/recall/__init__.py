"""Answers that a RETRO model can only have from what its cross attention reads (`task: recall`).

- `config.RecallConfig`          every setting
- `source`                       what a source of questions must give; `worlds` is the synthetic one
- `run.run_recall(config)`       train, or go on with, a run
- `answers`                      greedy answers, and how they are graded
- `live`                         the same questions through the running retriever
"""
