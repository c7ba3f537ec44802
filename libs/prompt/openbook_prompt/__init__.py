"""One prompt for tuning, evaluation and serving: passages, what is shown of them, and the chat template."""
