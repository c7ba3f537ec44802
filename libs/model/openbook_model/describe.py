"""What `openbook model describe` says of a configuration: parameters, FLOPs, memory, sizes on disk, expected speed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from openbook_core.config import read_yaml
from openbook_core.errors import ArgumentError
from openbook_model.accounting import forward_work, parameters_by_part, training_flops
from openbook_model.checkpoint import read_config
from openbook_model.config import RetroConfig, size_names
from openbook_model.memory import training_memory


def find_config(name: str) -> RetroConfig:
    """Of a shipped size by name, a model folder, or a YAML file with a model's settings, alone or under `model`.

    Raises ArgumentError where it is none of them, ConfigError for settings that are wrong.
    """
    path = Path(name)
    if name in size_names():
        return RetroConfig.parse({"size": name}, source=name)
    if path.is_dir():
        return read_config(path)
    if not path.is_file():
        raise ArgumentError(
            f"{name} is no model folder, no YAML file and no size ({', '.join(size_names())})", field="config"
        )
    settings = read_yaml(path)
    if isinstance(settings.get("model"), dict):
        settings = settings["model"]
    return RetroConfig.parse(settings, source=name)


def describe(
    config: RetroConfig,
    *,
    gpus: int = 1,
    tokens: int | None = None,
    sequences: int = 1,
    gpu_tflops: float = 989.0,
    mfu: float = 0.4,
    frozen_base: bool = False,
) -> dict[str, Any]:
    """All figures, in bytes, FLOPs and tokens per second; for sequences of `tokens` (at most 4,096 by default).

    `gpu_tflops`: dense bfloat16 peak of one GPU (an H100's 989), of which training reaches the share `mfu`.
    """
    length = min(config.max_positions, 4096) if tokens is None else tokens
    if not 1 <= length <= config.max_positions:
        raise ArgumentError(f"tokens must be in 1..{config.max_positions}, given {length}", field="tokens")
    for field, value in (("gpus", gpus), ("sequences", sequences), ("gpu_tflops", gpu_tflops), ("mfu", mfu)):
        if value <= 0:
            raise ArgumentError(f"{field} must be positive, given {value}", field=field)
    if mfu > 1:
        raise ArgumentError(f"mfu is a fraction up to 1, given {mfu}", field="mfu")
    parts = parameters_by_part(config)
    total = sum(parts.values())
    retro = parts["cross attention"] + parts["encoder"]
    work = forward_work(config, length)
    training = training_flops(config, length, frozen_base=frozen_base)
    memory = training_memory(config, length, gpus=gpus, sequences=sequences)
    return {
        "parameters": {
            **parts,
            "total": total,
            "decoder alone": total - retro,
            "trained": retro if frozen_base else total,
        },
        "tokens_per_sequence": length,
        "flops_per_token": {
            "forward": work.total / length,
            "training": training / length,
            "encoder_share": (work.encoder + work.encoder_input).total / work.total,
            "cross_attention_share": work.cross.total / work.total,
            "over_the_decoder_alone": work.total / work.decoder.total,
        },
        "memory_per_gpu": {
            "gpus": gpus,
            "sequences": sequences,
            **asdict(memory),
            "total": memory.total,
            "total_checkpointed": memory.total_checkpointed,
        },
        "on_disk": {"model_bfloat16": 2 * total, "model_float32": 4 * total, "training_checkpoint": 12 * total},
        "speed": {
            "gpus": gpus,
            "gpu_tflops": gpu_tflops,
            "mfu": mfu,
            "tokens_per_second": gpus * gpu_tflops * 1e12 * mfu / (training / length),
        },
    }


def render(figures: dict[str, Any]) -> str:
    """For people. A GB is 10^9 bytes."""
    parts, flops, memory = figures["parameters"], figures["flops_per_token"], figures["memory_per_gpu"]
    disk, speed = figures["on_disk"], figures["speed"]
    lines = ["parameters"]
    lines += [f"  {name:18}{number:>18,}" for name, number in parts.items()]
    lines += [
        f"FLOPs per token, sequences of {figures['tokens_per_sequence']:,}",
        f"  forward           {flops['forward'] / 1e9:>14,.3f} G, {flops['over_the_decoder_alone']:.2f} times the decoder alone",
        f"  training          {flops['training'] / 1e9:>14,.3f} G",
        f"  encoder           {flops['encoder_share']:>14.1%}, cross attention {flops['cross_attention_share']:.1%}",
        f"memory per GPU, FSDP over {memory['gpus']}, {memory['sequences']} sequences each (estimate)",
    ]
    names = ("states", "gathered", "activations", "checkpointed", "logits", "total", "total_checkpointed")
    lines += [f"  {name.replace('_', ' '):18}{memory[name] / 1e9:>14,.2f} GB" for name in names]
    lines += ["on disk"]
    lines += [f"  {name.replace('_', ' '):18}{number / 1e9:>14,.2f} GB" for name, number in disk.items()]
    lines += [
        f"speed at {speed['mfu']:.0%} of {speed['gpus']} x {speed['gpu_tflops']:g} TFLOP/s",
        f"  tokens per second {speed['tokens_per_second']:>14,.0f}",
    ]
    return "\n".join(lines)
