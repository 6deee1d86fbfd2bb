"""Tiny models of two vocabularies, and guided models made of them."""

from collections.abc import Sequence

import mlx.nn as nn
from tiny import tiny_guide, tiny_model

from parm_mlx.guidance.across import AcrossGuide, AcrossModel
from parm_mlx.guidance.guide import Guide, Guides
from parm_mlx.guidance.refinement import Refinement
from parm_mlx.guidance.token_bytes import TokenBytes
from parm_mlx.guidance.vocabulary_pair import Pair

BASE = TokenBytes([None, b"a", b"b", b"bab", b"abba", b"aa", b" ", b" a"], [0])
GUIDE = TokenBytes([b"a", b"b", b"ab", b"ba", b"aab", b"bb", b" ", None], [7])
PROMPTS = [([1, 2, 5], [3, 1]), ([2, 2], [0, 6, 4, 4]), ([5, 1, 1, 3], [1])]


def tiny_base(size: int = len(BASE.pieces), seed: int = 11) -> nn.Module:
    return tiny_model("llama", seed, vocab_size=size)


def tiny_own_guide(size: int = len(GUIDE.pieces), seed: int = 12, objectives: Sequence[str] | None = None) -> Guide:
    settings = {} if objectives is None else {"objectives": tuple(objectives)}
    return tiny_guide("llama", seed, changes={"vocab_size": size}, **settings)


def tiny_across(
    base: TokenBytes = BASE,
    guide: TokenBytes = GUIDE,
    how: Refinement | None = None,
    beta: float = 0.7,
    model: Guide | Guides | None = None,
) -> AcrossModel:
    """A base and a guide of other vocabularies, with different weights."""
    own = model or tiny_own_guide(len(guide.pieces))
    return AcrossModel(tiny_base(len(base.pieces)), AcrossGuide(own, Pair(base, guide, guide.ends[0]), how), beta)
