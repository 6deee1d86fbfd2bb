"""What an evaluation is asked for, read and checked: prompts, preferences, rewards and seeds."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from parm_mlx.data.prompts import check_distinct, read_alphas, read_prompts
from parm_mlx.errors import InputError
from parm_mlx.evaluation.even import EVEN, FIRST, check_even
from parm_mlx.files import NAMED, expanded
from parm_mlx.guidance.named import held_out_prompts
from parm_mlx.guidance.prompts import Prompt, content_id
from parm_mlx.guidance.sampling import Sampling
from parm_mlx.guidance.templates import Content
from parm_mlx.preference import Alpha, AlphaSpec, parse_alpha, simplex_grid
from parm_mlx.ranges import SEED, shown
from parm_mlx.rewards.registry import SCORERS, Function, Reward, load_rewards

GRID_STEPS = {1: 1.0, 2: 0.1, 3: 0.25}  # by number of objectives
COARSE = 0.5

Rewards = Sequence[str] | Mapping[str, str | Function]
Grid = float | Literal["even"]


def seeds_of(sampling: Sampling, count: int) -> list[int]:
    """Returns a seed for each answer to a prompt at a preference."""
    if count > 1 and sampling.temp == 0:
        raise InputError("several samples need a temperature above 0: without, all answers to a prompt are the same")
    try:
        SEED.read(sampling.seed + count - 1)
    except ValueError as reason:
        raise InputError(f"the seed of the last sample {reason}") from None
    return list(range(sampling.seed, sampling.seed + count))


def prompts_of(given: str | Path | Sequence[Content] | None, adapter: str) -> list[Prompt]:
    """Returns prompts; by default those that an adapter with a name was not trained on."""
    if isinstance(given, (str, Path)):
        file = expanded(given)
        found = read_prompts(file)
        check_distinct(found, file)
        return found
    contents: Sequence[Content] = given or []
    if given is None and adapter in NAMED:
        contents = held_out_prompts(adapter)
    if not contents:
        raise InputError("prompts are missing", hint="for instance a file of them: --prompts questions.txt")
    return list({content_id(content): Prompt(content_id(content), content) for content in contents}.values())


def alphas_of(
    given: str | Path | Sequence[AlphaSpec] | None, grid: Grid | None, objectives: Sequence[str]
) -> list[Alpha]:
    """Returns the preferences that are listed or on a grid; of an even one, those that it begins with."""
    if grid == EVEN:
        check_even(objectives)
        return list(FIRST)
    if isinstance(grid, str):
        raise InputError(f"grid must be a step or {EVEN!r}, got {shown(grid)}")
    if given is None:
        k = len(objectives)
        return simplex_grid(k, GRID_STEPS.get(k, COARSE) if grid is None else grid)
    if isinstance(given, (str, Path)):
        return read_alphas(expanded(given), objectives)
    found = list(dict.fromkeys(parse_alpha(spec, objectives) for spec in given))
    if not found:
        raise InputError("preferences are missing")
    return found


def rewards_of(given: Rewards | None, objectives: Sequence[str]) -> dict[str, Reward]:
    """Returns the rewards by name, those of the objectives first and in their order."""
    given = given or {name: f"builtin:{name}" for name in objectives if name in SCORERS}
    names = list(given) if isinstance(given, Mapping) else [spec.partition("=")[0].strip() for spec in given]
    if missing := [name for name in objectives if name not in names]:
        raise InputError(
            f"no --reward for {', '.join(missing)}; the objectives are {', '.join(objectives)}",
            hint=f"add --reward {missing[0]}=SPEC",
        )
    rewards = load_rewards(given)
    return {name: rewards[name] for name in dict.fromkeys([*objectives, *rewards])}
