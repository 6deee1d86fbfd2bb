"""Guided decoding: a base model and a preference-aware guide as one model."""

from parm_mlx.guidance.guide import Guide
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import load, load_base, load_guide

__all__ = ["Guide", "GuidedModel", "load", "load_base", "load_guide"]
