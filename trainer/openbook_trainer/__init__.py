"""Pretraining RETRO with neighbours from the live retriever.

- `config.TrainConfig`, `config.load_train_config(path, overrides)`   every setting, typed and frozen
- `app.train(config)` -> summary                                      one process, or a rank under torchrun
- `data`         corpus on the chunk grid; batches as a pure function of (seed, epoch, index)
- `neighbours`   the source interface, the live retriever, prefetch
- `evaluation`   held-out loss OFF, ON and with shuffled neighbours
- `checkpoint`   atomic, checksummed, resumable state

Nothing heavy is imported here.
"""
