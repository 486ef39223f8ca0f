"""DR.Q: debiased model-based representations for Q-learning (2026; spec page drq.md).

MR.Q with a contrastive loss on the predicted embeddings, replay that fades with age, values of rewards as they are, and
other widths and optimiser settings. Each is a switch of MR.Q (`baselines/mrq.py`), so that one can go either way.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

from baselines import mrq
from iqrl.agent import register


def changed(name: str, default: Any) -> Any:
    """MR.Q's setting of this name with another default."""
    metadata = next(f.metadata for f in dataclasses.fields(mrq.Config) if f.name == name)
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config(mrq.Config):
    """MR.Q's settings with DR.Q's defaults (table at the end of drq.md)."""

    encoder_hidden_dim: int = changed("encoder_hidden_dim", 750)
    done_weight: float = changed("done_weight", 0.0)
    infonce_weight: float = changed("infonce_weight", 0.1)
    enc_lr: float = changed("enc_lr", 3e-4)
    enc_weight_decay: float = changed("enc_weight_decay", 0.01)
    scale_rewards: bool = changed("scale_rewards", False)
    value_weight_decay: float = changed("value_weight_decay", 0.01)
    value_clip: float = changed("value_clip", 0.0)
    policy_weight_decay: float = changed("policy_weight_decay", 0.01)
    pre_activation_weight: float = changed("pre_activation_weight", 0.0)
    fade: float = changed("fade", 0.9999)


@register("drq")
class DRQ(mrq.MRQ):
    Config = Config
    presets = {
        "default": {},
        "small": {**mrq.MRQ.presets["small"], "encoder_hidden_dim": 188},
        "tiny": {**mrq.MRQ.presets["tiny"], "encoder_hidden_dim": 24},
    }
