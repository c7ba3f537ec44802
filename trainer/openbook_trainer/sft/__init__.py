"""Instruction tuning (`task: sft`): a blend of data sets, passages as the live retriever finds them, LoRA or full."""
