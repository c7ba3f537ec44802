"""What a build can be told."""

from __future__ import annotations

from pydantic import Field, field_validator

from openbook_core.config import FrozenConfig
from openbook_database.chunking import PassageTemplate
from openbook_database.cleaning.config import CleaningConfig
from openbook_database.index.recipe import AUTO, DEFAULT_MEMORY, check_recipe
from openbook_database.reader import FieldNames

DEFAULT_TEMPLATE = "{title}: {text}"


class BuildSettings(FrozenConfig):
    """All of it is recorded in the snapshot; changing any of it makes another snapshot."""

    fields: FieldNames = FieldNames()
    cleaning: CleaningConfig = CleaningConfig()
    chunk_length: int = Field(default=64, ge=1, le=4096, description="tokens of a chunk (m)")
    passage_template: str = Field(
        default=DEFAULT_TEMPLATE, description="what is embedded for a chunk: {text} with {title} and {heading}"
    )
    index: str = Field(default=AUTO, description="index recipe as a Faiss factory string, or auto: by size and memory")
    memory: int = Field(
        default=DEFAULT_MEMORY,
        ge=1 << 20,
        description="bytes of a machine that hold a shard's index, by which auto chooses, and the vectors to train on",
    )
    target_recall: float = Field(default=0.95, gt=0, le=1, description="recall@10 that the default search shall reach")
    train_sample: int | None = Field(
        default=None, ge=1, description="chunks to train on; by default 64 for each list, as far as memory holds them"
    )
    shards: int = Field(default=1, ge=1, le=99_999, description="most shards; each holds at least one document")
    keep_vectors: bool = Field(default=True, description="keep the embeddings as float16 beside the index")
    skip_bad_lines: bool = Field(default=False, description="count lines that hold no document instead of stopping")
    limit_documents: int | None = Field(default=None, ge=1, description="only the first documents, for short runs")
    chunk_block: int = Field(default=16_384, ge=1, description="chunks of one block of the chunk stage, at least")
    embed_block: int = Field(default=1024, ge=1, le=1 << 20, description="chunks that the encoder is given at once")
    golden_queries: int = Field(default=32, ge=1, le=1024, description="queries with known answers in the manifest")

    @field_validator("passage_template")
    @classmethod
    def _template(cls, value: str) -> str:
        PassageTemplate(value)
        return value

    @field_validator("index")
    @classmethod
    def _recipe(cls, value: str) -> str:
        return check_recipe(value)
