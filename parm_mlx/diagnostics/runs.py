"""Generation that can be stopped and resumed between tokens, so that several can take turns."""

from collections.abc import Sequence
from itertools import islice
from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.generate import BatchGenerator, generate_step

from parm_mlx.guidance.guided import Cache, GuidedModel
from parm_mlx.guidance.prefill import prefill, read
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.speculation import Drafting, Speculation, Track
from parm_mlx.mlxlm import make_prompt_cache

ENDLESS = 2**31


class Run(Protocol):
    """One generation of one or several sequences.

    Attributes:
        sequences: The tokens of each sequence so far.
    """

    sequences: list[list[int]]

    @property
    def acceptance(self) -> float | None:
        """Share of the drafted tokens that were accepted; None where nothing is drafted."""
        ...

    def read(self) -> None:
        """Reads the prompts, up to the first token of each sequence."""
        ...

    def decode(self, steps: int) -> int:
        """Decodes at least so many tokens of each sequence.

        Returns:
            The tokens of all sequences together.
        """
        ...

    def close(self) -> None:
        """Ends it."""
        ...


class Single:
    """One sequence, by mlx-lm's generate_step.

    Args:
        model: An mlx-lm model.
        prompt: Token ids.
        cache: A fresh prompt cache.
    """

    acceptance: float | None = None

    def __init__(self, model: nn.Module, prompt: Sequence[int], cache: Cache) -> None:
        self.sequences: list[list[int]] = [[]]
        self._tokens = generate_step(mx.array(list(prompt)), model, max_tokens=-1, prompt_cache=cache)

    def read(self) -> None:
        """Reads the prompt, up to the first token."""
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes so many tokens."""
        self.sequences[0] += (int(token) for token, _ in islice(self._tokens, steps))
        return steps

    def close(self) -> None:
        """Ends it."""
        self._tokens.close()


class Batch:
    """Several sequences, by mlx-lm's BatchGenerator.

    Args:
        model: An mlx-lm model.
        prompts: Token ids, as many for each sequence.
        caches: A fresh prompt cache for each.
    """

    acceptance: float | None = None

    def __init__(self, model: nn.Module, prompts: Sequence[Sequence[int]], caches: list[Cache]) -> None:
        rows = len(prompts)
        self._generator = BatchGenerator(model, max_tokens=ENDLESS, completion_batch_size=rows, prefill_batch_size=rows)
        uids = self._generator.insert([list(prompt) for prompt in prompts], caches=caches)
        self.sequences: list[list[int]] = [[] for _ in uids]
        self._sequence_of = dict(zip(uids, self.sequences, strict=True))

    def read(self) -> None:
        """Reads the prompts, up to the first token of each sequence."""
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes so many tokens of each sequence."""
        for _ in range(steps):
            for response in self._generator.next_generated():
                self._sequence_of[response.uid].append(response.token)
        return steps * len(self.sequences)

    def close(self) -> None:
        """Ends it."""
        self._generator.close()


class Drafted:
    """One sequence, by speculative decoding; a step ends when all tokens of a check are taken.

    Args:
        model: A guided model.
        prompt: Token ids.
        cache: A fresh prompt cache.
        drafting: Who drafts.
    """

    def __init__(self, model: GuidedModel, prompt: Sequence[int], cache: Cache, drafting: Drafting) -> None:
        self.sequences: list[list[int]] = [[]]
        self._model, self._prompt, self._cache, self._drafting = model, list(prompt), cache, drafting

    @property
    def acceptance(self) -> float:
        """Share of the drafted tokens that were accepted."""
        return self._speculation.count.rate

    def read(self) -> None:
        """Reads the prompt, up to the tokens of the first check."""
        last = prefill(self._model, self._cache, self._prompt, self._prompt)
        draft = None
        if self._drafting.model is not None:
            draft = Track(make_prompt_cache(self._drafting.model))
            read(self._drafting.model, self._prompt[:-1], draft.cache)
        self._speculation = Speculation(self._model, self._cache, last, self._drafting, Sampling(), draft=draft)
        self._tokens = iter(self._speculation)
        self.decode(1)

    def decode(self, steps: int) -> int:
        """Decodes at least so many tokens."""
        tokens = self.sequences[0]
        before = len(tokens)
        while len(tokens) < before + steps or len(tokens) <= len(self._speculation.read):
            tokens.append(next(self._tokens))
        return len(tokens) - before

    def close(self) -> None:
        """There is nothing to end."""
