"""What is asked for, and what comes back."""

from dataclasses import dataclass

from parm_mlx.guidance.prompts import PromptTokens
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.speculation import DraftCount
from parm_mlx.preference import Alpha


@dataclass(frozen=True)
class Request:
    """One answer to generate.

    Attributes:
        prompt: Its tokens for base and guide.
        alpha: The preference; None asks the base alone.
        sampling: How its tokens are chosen.
        number: Tells answers with the same seed apart.
    """

    prompt: PromptTokens
    alpha: Alpha | None
    sampling: Sampling
    number: int = 0


@dataclass(frozen=True)
class Answer:
    """A finished answer.

    Attributes:
        index: Position of its request.
        text: The answer.
        tokens: Its token ids, without the end-of-sequence token.
        finish_reason: ``"stop"`` at the end of the sequence, ``"length"`` at the limit.
        drafts: How drafted tokens fared; None where none were drafted.
    """

    index: int
    text: str
    tokens: list[int]
    finish_reason: str
    drafts: DraftCount | None = None
