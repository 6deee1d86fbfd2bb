"""Preference pairs from a model and scorers: prompts → several answers to each → scores → pairs.

Answers and scores are kept in a folder as they come (:mod:`parm_mlx.answers`); pairs are made of what it holds.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from parm_mlx.answers.store import Key, Result, RunFolder, Scores
from parm_mlx.answers.sweep import GROUP, Job, Progress, Sweep, answer_all, answer_seed, no_progress, score_all
from parm_mlx.data.dataset import Disagreement, count_labels, disagreement
from parm_mlx.data.formats import as_row
from parm_mlx.data.pairing import Choice, Distribution, Pairing, ScoredAnswer, correlations, different, trimmed
from parm_mlx.data.pairs import Pair
from parm_mlx.data.prompts import check_distinct, read_prompts
from parm_mlx.data.relabel import parse_min_margins
from parm_mlx.distributed import join
from parm_mlx.errors import DataError, InputError
from parm_mlx.files import expanded, resolve
from parm_mlx.fingerprint import fingerprint
from parm_mlx.guidance.encoding import encode
from parm_mlx.guidance.generate import generate_batch, in_order
from parm_mlx.guidance.guided import Unguided
from parm_mlx.guidance.loading import load_base
from parm_mlx.guidance.prompts import Prompt, Prompter, PromptTokens, content_id, render_prompt
from parm_mlx.guidance.sampling import Request, Sampling
from parm_mlx.guidance.templates import Content, as_messages
from parm_mlx.interrupt import stop_on_interrupt
from parm_mlx.machine import keep_freed_memory
from parm_mlx.mlxlm import TokenizerWrapper
from parm_mlx.outputs import check_claim, write_file
from parm_mlx.preference import parse_objectives
from parm_mlx.rewards.registry import Reward

PAIRS_FILE = "pairs.jsonl"
NO_SYSTEM = "none"  # in place of a system prompt: without one
AGREE = 0.1  # objectives that disagree in fewer pairs have nothing to trade
LENGTH = "length"
PROMPT_TOKENS = 64  # of a prompt that the model writes itself, at most
ROUNDS = 8  # of writing prompts, after which there may be too few different ones
_MARK = "Prompt0Mark"


@dataclass(frozen=True)
class Sampled:
    """What was sampled. ``labels`` and ``scores`` are by objective; length is in tokens."""

    pairs: int
    labels: dict[str, int]
    scores: dict[str, Distribution]
    length: Distribution
    correlation: dict[tuple[str, str], float]  # of scores with each other and with length, within prompts
    disagreement: Disagreement
    prompts: int = 0
    answers: int = 0
    unfinished: int = 0  # answers that reached the limit
    dropped: int = 0  # of these, the ones without a whole sentence

    def warnings(self) -> list[str]:
        """Returns what a user should change, one line each."""
        found = [
            f"{a} and {b} disagree in {differ} of {both} pairs: there is hardly anything to trade between them"
            for (a, b), (both, differ) in self.disagreement.items()
            if both and differ < AGREE * both
        ]
        return found + [
            f"{name} follows the length of answers (correlation {value:.2f}): it may teach length alone"
            for (name, other), value in self.correlation.items()
            if other == LENGTH and abs(value) > 0.7
        ]


def sample(
    model: str | Path,
    rewards: Mapping[str, Reward],
    out: str | Path,
    *,
    prompts: str | Path | None = None,
    magpie: int | None = None,
    num_samples: int = 4,
    system_prompts: Sequence[str] = (),
    sampling: Sampling | None = None,
    max_tokens: int = 128,
    chat_template: str | None = None,
    min_margin: Sequence[str] = (),
    even_length: float = 0.3,
    trim: bool = True,
    pairs: Choice = "best",
    batch_size: int = 16,
    resume_anyway: bool = False,
    note: Callable[[str], None] = lambda message: None,
    progress: Progress[Any] = no_progress,
) -> Sampled | None:
    """Samples answers to prompts, scores them, and writes pairs of them to ``pairs.jsonl`` in the folder ``out``.

    Answers and scores stay there: the same call goes on after an interruption, and another choice of pairs makes them
    anew without sampling. Under ``mlx.launch`` several processes share the work.

    Args:
        model: Directory or hub id of the model that answers.
        rewards: What scores the answers, higher is better, by objective.
        out: The folder.
        prompts: A file of prompts, as :func:`parm_mlx.data.prompts.read_prompts` reads it.
        magpie: In place of ``prompts``, how many the model writes itself, as what follows the opening of the user's
            turn (Magpie, arXiv 2406.08464).
        num_samples: Answers to each prompt.
        system_prompts: System messages that the answers to a prompt take in turns; ``"none"`` is no message.
        sampling: How tokens are chosen; its seed is that of the first answer. Temperature 0.8 by default.
        max_tokens: Length of the longest answer.
        chat_template: Name of a built-in chat template, in place of the tokenizer's own.
        min_margin: Smallest leads that are labels: ``"NUMBER"`` or ``"NAME=NUMBER"``, with ``sd`` after the number in
            standard deviations of the scores. By default a quarter of one.
        even_length: By how much the longer answer of a pair may be longer, as a share of it. The loss adds up
            log-probabilities, so that length alone decides where lengths differ.
        trim: Cut unfinished answers after their last whole sentence. Training does not learn that they end there.
        pairs: Which pairs of the answers to a prompt are taken; see :class:`parm_mlx.data.pairing.Pairing`.
        batch_size: Number of answers generated at the same time.
        resume_anyway: Go on also where the model or rewards are not those that the folder began with.
        note: Receives notes for the user.
        progress: Shows progress: passes items on, given their number and a label.

    Returns:
        What there is to know about answers and pairs; None in all processes but the main one.

    Raises:
        InputError: A model, prompt, reward or setting cannot be used; or the folder holds another run.
        DataError: No two answers make a pair.
        RunError: A reward failed, logits were not finite, or the disk is full; what is done stays.
        KeyboardInterrupt: Ctrl-C; the message says how many answers are kept.
    """
    out, sampling, names = expanded(out), sampling or Sampling(temp=0.8), parse_objectives(list(rewards))
    min_margin = min_margin or ["0.25sd"]
    _margins(min_margin, dict.fromkeys(names, 1.0))
    if (prompts is None) == (magpie is None):
        problem = "prompts are missing" if prompts is None else "--prompts and --magpie exclude each other"
        raise InputError(problem, hint="--prompts FILE, or --magpie N: the model writes its own")
    if num_samples < 2:
        raise InputError("a pair needs two answers to a prompt", hint="--num-samples 4")
    if sampling.temp == 0 and len(set(system_prompts)) < num_samples:
        raise InputError("several answers to a prompt need a temperature above 0: without, they are the same")
    check_claim(out, "samples")
    asked = _read(prompts) if prompts is not None else []
    path = resolve(model)
    base, tokenizer = load_base(path)
    keep_freed_memory()
    group = join()
    guided = Unguided(base)
    prompter = Prompter(
        tokenizer,
        tokenizer,
        base_template=chat_template,
        guide_template=chat_template,
        limit=guided.context_length,
        rows=guided.rows,
    )
    if prompter.note and group.main:
        note(prompter.note)
    settings = {
        "model": str(model),
        **{name: getattr(sampling, name) for name in ("temp", "top_p", "top_k", "min_p", "seed")},
        "max_tokens": max_tokens,
        "num_samples": num_samples,
        "system_prompts": list(system_prompts),
        "chat_template": chat_template,
        "trim": trim,
        **({"magpie": magpie} if magpie else {"prompts": {each.id: content_id(each.content) for each in asked}}),
    }
    identity = {
        "objectives": list(names),
        "settings": settings,
        "models": {"model": fingerprint(path)},
        "reward_files": {reward.source: reward.digest for reward in rewards.values() if reward.digest},
    }
    sweep = Sweep(guided, tokenizer, prompter, sampling, max_tokens, batch_size)
    with group.reported_once(), group.agreed():
        sweep.check(asked)
        folder = RunFolder(out, identity, resume_anyway, kind="samples")
    group.check_same({"settings": folder.identity})
    with ExitStack() as held:
        with group.agreed():
            if group.main:
                held.enter_context(folder.locked(group.size))
        with stop_on_interrupt() as stopped:
            if magpie:
                asked = write_prompts(sweep, magpie, chat_template, stopped, progress)
            jobs = [job for prompt in asked for job in _jobs(prompt, num_samples, system_prompts, sampling.seed)]
            groups = [jobs[i : i + GROUP] for i in range(0, len(jobs), GROUP)]
            results, _ = answer_all(folder, sweep, groups, group, stopped, progress)
        if not group.main:
            return None
        if stopped():
            raise KeyboardInterrupt(f"interrupted: {len(results)} answers are kept; the same command goes on")
        contents = {prompt.id: prompt.content for prompt in asked}
        answers = [_as_asked(result, contents[result.id], trim) for result in results]
        answers = [answer for answer in answers if answer.text]
        if not answers:
            raise DataError(
                f"none of the {len(results)} answers has a whole sentence within {max_tokens} tokens",
                hint="a larger --max-tokens, or --trim off, which keeps answers that are cut off",
            )
        folder.set_rewards({name: reward.spec for name, reward in rewards.items()})
        scores = score_all(folder, answers, rewards, progress)
        rows, sampled = _pair(answers, scores, tokenizer, names, min_margin, even_length, pairs)
        write_file(out / PAIRS_FILE, map(as_row, rows))
    if not rows:
        raise DataError(
            f"no two of the {len(answers)} answers make a pair",
            hint="more --num-samples, a higher --temp, a larger --even-length or a smaller --min-margin",
        )
    unfinished = sum(result.finish_reason != "stop" for result in results)
    dropped = len(results) - len(answers)
    return replace(sampled, prompts=len(asked), answers=len(results), unfinished=unfinished, dropped=dropped)


def write_prompts(
    sweep: Sweep,
    number: int,
    chat_template: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
    progress: Progress[Any] = no_progress,
) -> list[Prompt]:
    """Lets a model write users' turns: what it continues the opening of such a turn with. Near-duplicates are dropped.

    Raises:
        DataError: It does not write so many different ones.
    """
    before, after = _around_prompt(sweep.tokenizer, chat_template)
    ids = encode(sweep.tokenizer, before) or [sweep.tokenizer.eos_token_id]
    sampling = replace(sweep.sampling, temp=1.0)
    texts: list[str] = []
    for start in range(0, ROUNDS * number, number):
        seeds = [answer_seed(before, seed) for seed in range(start, start + number)]
        requests = [Request(PromptTokens(ids, ids), None, replace(sampling, seed=seed)) for seed in seeds]
        answers = generate_batch(sweep.model, sweep.tokenizer, requests, PROMPT_TOKENS, sweep.batch_size, stopped)
        for answer in in_order(progress(answers, number, "prompts")):
            text, end, _ = answer.text.partition(after) if after else (answer.text, "", "")
            if (end or answer.finish_reason == "stop") and text.strip():
                texts.append(text.strip())
        texts = list(different(texts))[:number]
        if stopped() or len(texts) == number:
            return [Prompt(content_id(text), text) for text in texts]
    raise DataError(
        f"the model wrote {len(texts)} different prompts of {number} in {ROUNDS * number} tries",
        hint="ask for fewer with --magpie, or write some: --prompts FILE",
    )


def _around_prompt(tokenizer: TokenizerWrapper, chat_template: str | None) -> tuple[str, str]:
    """Returns what a chat template writes before a user's text, and the first line that it writes after it."""
    before, _, after = render_prompt(tokenizer, [{"role": "user", "content": _MARK}], chat_template).partition(_MARK)
    return before, after.strip().partition("\n")[0]


def _jobs(prompt: Prompt, num_samples: int, system_prompts: Sequence[str], seed: int) -> list[Job]:
    """Returns the answers to sample to a prompt, with system prompts in turns."""
    jobs = []
    for i in range(num_samples):
        content, system = prompt.content, system_prompts[i % len(system_prompts)] if system_prompts else NO_SYSTEM
        if system != NO_SYSTEM:
            turns = [message for message in as_messages(content) if message["role"] != "system"]
            content = [{"role": "system", "content": system}, *turns]
        jobs.append(Job(replace(prompt, content=content), None, seed + i))
    return jobs


def _as_asked(result: Result, prompt: Content, trim: bool) -> Result:
    """Returns an answer as one to its prompt without a system prompt; an unfinished one up to its last sentence."""
    cut = trim and result.finish_reason != "stop"
    return replace(result, prompt=prompt, text=trimmed(result.text) if cut else result.text.strip())


def _pair(
    answers: Sequence[Result],
    scores: Mapping[Key, Scores],
    tokenizer: TokenizerWrapper,
    names: Sequence[str],
    min_margin: Sequence[str],
    even_length: float,
    choice: Choice,
) -> tuple[list[Pair], Sampled]:
    """Returns pairs of scored answers, and what there is to know of both."""
    columns: dict[str, list[float]] = {name: [scores[answer.key][name] for answer in answers] for name in names}
    lengths = [len(tokenizer.encode(answer.text, add_special_tokens=False)) for answer in answers]
    spread = {name: Distribution.of(values) for name, values in columns.items()}
    units = {name: each.deviation or 1.0 for name, each in spread.items()}
    pairing = Pairing(choice, even_length, _margins(min_margin, units), units)
    by_prompt: dict[str, list[ScoredAnswer]] = {}
    for answer, length in zip(answers, lengths, strict=True):
        ended = answer.finish_reason == "stop"
        by_prompt.setdefault(answer.id, []).append(ScoredAnswer(answer.text, ended, length, scores[answer.key]))
    prompts = {answer.id: answer.prompt for answer in answers}
    rows = [pair for id, several in by_prompt.items() for pair in pairing(prompts[id], several, id)]
    return rows, Sampled(
        pairs=len(rows),
        labels=count_labels(rows, names),
        scores=spread,
        length=Distribution.of(lengths),
        correlation=correlations({**columns, LENGTH: lengths}, [answer.id for answer in answers]),
        disagreement=disagreement(rows, names),
    )


def _margins(specs: Sequence[str], units: Mapping[str, float]) -> dict[str, float]:
    """Reads the smallest margins that are labels, those that end in ``sd`` in the units of their objectives."""
    values = parse_min_margins([spec.strip().removesuffix("sd") for spec in specs], list(units))
    in_units = {spec.rpartition("=")[0].strip(): spec.strip().endswith("sd") for spec in specs}  # "" is for all
    return {
        name: value * (units[name] if in_units.get(name, in_units.get("", False)) else 1)
        for name, value in values.items()
    }


def _read(file: str | Path) -> list[Prompt]:
    path = expanded(file)
    found = read_prompts(path)
    check_distinct(found, path)
    return found
