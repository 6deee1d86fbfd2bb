"""Guided decoding: a base model and a preference-aware guide as one model."""

from parm_mlx.guidance.loading import load, load_base, load_guide
from parm_mlx.guidance.model import Guide, GuidedModel

__all__ = ["Guide", "GuidedModel", "load", "load_base", "load_guide"]
