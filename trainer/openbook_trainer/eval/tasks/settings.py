"""What a run over tasks is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, PositiveInt, model_validator

from openbook_core.config import FrozenConfig
from openbook_prompt.settings import DEFAULT_PASSAGES, PromptSettings

Side = Literal["closed-book", "off", "on"]
SIDES: tuple[Side, ...] = get_args(Side)


class TasksConfig(FrozenConfig):
    """`databases`: for each task with a database its name at `retriever`. `limit`: a sample of so many questions a task.

    `limit_documents`: each task's database was built from its first documents only; only questions about these are
    asked. `part`: of the questions, "test" being what tuning leaves out. `adapter` is merged into the model, and
    the prompt's settings that it was trained with replace `prompt`, save for those that `prompt` sets. `k` passages
    are found for a question; what of them is shown is for `prompt` to say. `closed_instruction` follows the closed-book
    question, which then has the prompt's lead-in as well; empty leaves the question alone, as serving sends it.
    `sides` are asked; what is found for a question is measured in any case.
    """

    model: str
    adapter: Path | None = None
    tasks: tuple[str, ...] = Field(min_length=1)
    data: Path
    out: Path
    retriever: str | None = None
    databases: dict[str, str] = Field(default_factory=dict)
    limit: PositiveInt | None = None
    limit_documents: PositiveInt | None = None
    part: str = "all"
    sides: tuple[Side, ...] = Field(default=SIDES, min_length=1)
    k: PositiveInt = DEFAULT_PASSAGES
    max_tokens: PositiveInt = 32
    batch: PositiveInt = 8
    max_context: PositiveInt = 2048
    prompt: PromptSettings = PromptSettings()
    closed_instruction: str = "Answer briefly."
    dtype: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _possible(self) -> Self:
        if self.databases and self.retriever is None:
            raise ValueError("databases without a retriever: give the address of the router that serves them")
        return self
