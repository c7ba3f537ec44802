"""A model folder of ours that transformers loads too, with `trust_remote_code`: two more keys and one file."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from openbook_core.errors import CorruptError
from openbook_model.checkpoint import CONFIG_FILE, WEIGHTS_FILE, load

MODELING_FILE = "modeling_openbook_retro.py"
CLASS = "OpenbookRetroForCausalLM"


def write_retro(source: Path, folder: Path) -> str:
    """Configuration, weights as they are stored, and the modeling file; the name of its class.

    The folder stays one that `openbook_model.load` reads.
    """
    load(source)  # whatever is wrong with it is said here
    record = json.loads((source / CONFIG_FILE).read_text(encoding="utf-8"))
    weights = source / WEIGHTS_FILE
    with safe_open(weights, framework="pt") as file:
        names = list(file.keys())
        if not names:
            raise CorruptError(f"{weights} is empty", field="model")
        tensors = {name: file.get_tensor(name) for name in names}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    module = MODELING_FILE.removesuffix(".py")
    record |= {
        "model_type": "openbook-retro",
        "architectures": [CLASS],
        "auto_map": {"AutoConfig": f"{module}.OpenbookRetroConfig", "AutoModelForCausalLM": f"{module}.{CLASS}"},
        "dtype": str(tensors[names[0]].dtype).removeprefix("torch."),
    }
    (folder / CONFIG_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(Path(__file__).parent / MODELING_FILE, folder / MODELING_FILE)
    return CLASS
