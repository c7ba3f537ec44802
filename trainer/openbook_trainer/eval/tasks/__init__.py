"""Question answering tasks, closed-book and from a database (`openbook eval tasks`).

- `questions`  the tasks: readers of their files, and the documents of each task's database; `factbook` its editions
- `task`       what a task is
- `settings`   what a run is made of
- `records`    JSON Lines of a run that is killed and goes on
- `passages`   what is put before the model for each question, and the retrieval ceiling
- `decoding`   batched greedy answers through the slot cache
- `run`        the whole of it to figures; `table` prints and draws them

Nothing heavy is imported here.
"""
