"""Evaluation of finished models; the training loop's own held-out loss is `openbook_trainer.evaluation`.

- `metrics`      exact match and F1: SQuAD's rules, and NVIDIA's variants
- `intervals`    bootstrap intervals, standard errors of ratios over clusters
- `predictions`  a predictions file to figures (`openbook score`)
- `texts`        the text to measure: documents with tokens, bytes and words
- `windows`      sliding windows that score each token once
- `retrieved`    neighbours of their chunks; `half` those of half of a database
- `clusters`     losses to figures with standard errors
- `perplexity`   OFF, ON, with half of the database and with shuffled neighbours (`openbook eval perplexity`)
- `overlap`      RETRO's r, and bits per byte by it
- `gate`         whether a model uses what it retrieves
- `perplexity_table`  the figures as a table and a picture

Nothing heavy is imported here.
"""
