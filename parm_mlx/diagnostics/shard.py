"""Do several processes give the tokens that one gives? The check of ``parm-mlx doctor --shard``."""

import time
from collections.abc import Callable

import mlx.core as mx

from parm_mlx.diagnostics.doctor import Check
from parm_mlx.guidance.generate import generate_batch
from parm_mlx.guidance.guided import GuidedModel
from parm_mlx.guidance.loading import Share, load
from parm_mlx.guidance.named import held_out_prompts, named_models
from parm_mlx.guidance.prefill import STEP
from parm_mlx.guidance.prompts import Prompter, PromptTokens
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.shard import Shard
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.preference import Alpha

QUESTIONS = 3
TOKENS = 24
LONG = STEP + 64  # tokens of the longest prompt: more than are read at a time
HINT = (
    "what the exchanges carry arrives changed, or the processes compute with other weights; compare the versions of "
    "MLX and the files of the models, and try another --backend of mlx.launch"
)
Tokens = list[list[int]]


def check_shard(shard: Shard, model: str | None = None, parm: str | None = None) -> list[Check]:
    """Answers prompts in one process and over all, and compares the tokens; by default with the bundled models.

    Rank 0 answers alone, while the others wait. One prompt is longer than what is read at a time.

    Raises:
        InputError: The models cannot be loaded, or not be divided so.
    """
    base, adapters = named_models(model or "bundled", parm)
    share: Share = "off" if shard.how == "apart" else "auto"
    alone: list[Tokens] = []
    with shard.group.agreed():
        if shard.main:
            alone = _measured(lambda: load(base, adapters, share=share))[0]
            mx.clear_cache()
    together, lengths, seconds = _measured(lambda: load(base, adapters, share=share, shard=shard))
    others = shard.union(together)
    apart = [rank for rank, found in enumerate(others) if found != together]
    data = {"how": shard.how, "processes": shard.group.size, "prompts": lengths, "seconds": round(seconds, 1)}
    where = f"{shard.how} over {shard.group.size} processes, prompts of {', '.join(map(str, lengths))} tokens"
    if not shard.main:
        return []
    if apart:
        return [Check("shard", "failed", f"{where}: ranks {apart} have other tokens than rank 0", HINT, data)]
    wrong = [length for length, one, all_ in zip(lengths, alone, together, strict=True) if one != all_]
    if wrong:
        of = ", ".join(map(str, wrong))
        return [Check("shard", "failed", f"{where}: other tokens than in one process after {of} tokens", HINT, data)]
    return [Check("shard", "ok", f"{where}: the tokens of one process ({seconds:.1f} s)", data=data)]


def _measured(
    loaded: Callable[[], tuple[GuidedModel, TokenizerWrapper]],
) -> tuple[list[Tokens], list[int], float]:
    """The tokens of every answer at every preference, by prompt; the lengths of the prompts; and the seconds."""
    model, tokenizer = loaded()
    prompter = Prompter(tokenizer, tokenizer, guide_template=model.guide.chat_template, limit=model.context_length)
    prompts = [prompter(question) for question in held_out_prompts("bundled")[:QUESTIONS]]
    prompts.append(_long_prompt(tokenizer))
    k = len(model.objectives)
    corners: list[Alpha] = [tuple(float(i == own) for i in range(k)) for own in range(k)]
    began = time.perf_counter()
    tokens = []
    for prompt in prompts:
        requests = [Request(prompt, alpha, Sampling()) for alpha in corners]
        answers = sorted(generate_batch(model, tokenizer, requests, TOKENS), key=lambda answer: answer.index)
        tokens.append([answer.tokens for answer in answers])
    return tokens, [len(prompt.base) for prompt in prompts], time.perf_counter() - began


def _long_prompt(tokenizer: TokenizerWrapper) -> PromptTokens:
    """Plain text of ``LONG`` tokens.

    The bundled models were made for fewer, and go on to compute: that it is the same everywhere is what counts here.
    """
    read = tokenizer.encode(" ".join(held_out_prompts("bundled")))
    tokens = (read * (LONG // len(read) + 1))[:LONG]
    return PromptTokens(tokens, list(tokens))
