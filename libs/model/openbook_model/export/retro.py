"""A model folder of ours that transformers loads too, with `trust_remote_code`: two more keys and one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file

from openbook_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load
from openbook_model.export.huggingface import stored_dtype
from openbook_model.tensor_file import write_tensors

MODELING_FILE = "modeling_openbook_retro.py"
CLASS = "OpenbookRetroForCausalLM"


def write_retro(source: Path, folder: Path) -> str:
    """Configuration, weights as they are stored, and the modeling file; the name of its class.

    The folder stays one that `openbook_model.load` reads.
    """
    load(source)  # whatever is wrong with it is said here
    record = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    # Transformers asks for the metadata.
    write_tensors(load_file(source / WEIGHTS_FILE), folder / WEIGHTS_FILE, metadata={"format": "pt"})
    module = MODELING_FILE.removesuffix(".py")
    record |= {
        "model_type": "openbook-retro",
        "architectures": [CLASS],
        "auto_map": {"AutoConfig": f"{module}.OpenbookRetroConfig", "AutoModelForCausalLM": f"{module}.{CLASS}"},
        "dtype": str(stored_dtype(source)).removeprefix("torch."),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / MODELING_FILE, folder / MODELING_FILE)
    return CLASS
