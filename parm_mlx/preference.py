"""The preference vector α: parsing, names, validation, the simplex grid and Dirichlet samples.

α holds one weight per objective, on the simplex: each weight ≥ 0, the sum 1. Objectives are named, in the order of the
adapter that was trained for them.
"""

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from parm_mlx.errors import PreferenceError
from parm_mlx.ranges import BETA, CONCENTRATION, GRID_SIZE, meant, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Alpha = tuple[float, ...]
SMALLEST_STEP = 1e-4
AlphaSpec = str | Sequence[float] | Mapping[str, float]


def default_objectives(k: int) -> tuple[str, ...]:
    """Names for k objectives that nobody named: objective_1, objective_2, …"""
    return tuple(f"objective_{i + 1}" for i in range(k))


def parse_objectives(spec: str | Sequence[str], k: int | None = None) -> tuple[str, ...]:
    """Reads objective names: ``"helpful,harmless"`` or a sequence of names; k of them, if k is given.

    Raises:
        PreferenceError: One is empty, repeated, or holds ``=``, a comma or a control character, or k is another number.
    """
    names = tuple(name.strip() for name in (spec.split(",") if isinstance(spec, str) else spec))
    listed = ", ".join(names)
    if not names or not all(names):
        raise PreferenceError(f"objective names must not be empty, got {listed!r}")
    for name in names:
        if "=" in name or "," in name:
            raise PreferenceError(f"objective name {name!r} must not hold '=' or ','")
        if not name.isprintable():
            raise PreferenceError(f"objective name {name!r} must not hold control characters")
        if names.count(name) > 1:
            raise PreferenceError(f"objective {name!r} is named twice")
    if k is not None and len(names) != k:
        raise PreferenceError(f"{len(names)} objective name(s) given ({listed}) for an adapter with {k} objectives")
    return names


def parse_alpha(spec: AlphaSpec, objectives: Sequence[str]) -> Alpha:
    """Reads and normalises a preference vector.

    Args:
        spec: ``"0.7,0.3"`` (one weight per objective, in order), ``"helpful=0.7,harmless=0.3"`` or
            ``"helpful=0.7 harmless=0.3"`` (objectives left out weigh 0), a sequence of k weights, or a mapping from
            objective to weight.
        objectives: The k objectives, in order.

    Returns:
        k weights, each ≥ 0, that sum to 1.

    Raises:
        PreferenceError: The number of weights is not k, a weight is negative or not finite, all are zero, or a name is
            unknown or repeated.
    """
    known = f"the objectives are {', '.join(objectives)} (k={len(objectives)})"
    if isinstance(spec, str) and "=" not in spec:
        if not spec.strip():
            raise PreferenceError(f"alpha is empty; {known}")
        if spec.strip() == "base":
            problem = f"alpha must be weights here, and 'base' is the base model without its guide; {known}"
            raise PreferenceError(problem, hint="generate, evaluate, chat and serve answer with the base alone")
        weights = [_number(part.strip(), known) for part in spec.split(",")]
    elif isinstance(spec, str | Mapping):
        weights = _named(spec, objectives, known)
    else:
        try:
            values = list(spec)
        except TypeError:
            problem = f"alpha must be a list of weights or name=weight pairs, got {spec!r}; {known}"
            raise PreferenceError(problem) from None
        weights = [_number(value, known) for value in values]
    if len(weights) != len(objectives):
        raise PreferenceError(f"alpha has {len(weights)} weight(s), {known}")
    for name, weight in zip(objectives, weights, strict=True):
        if not math.isfinite(weight) or weight < 0:
            raise PreferenceError(f"the weight of {name} must be a finite number ≥ 0, got {weight:g}; {known}")
    largest = max(weights)
    if largest == 0:
        raise PreferenceError(f"alpha is all zero; give at least one objective a positive weight, {known}")
    if math.isclose(sum(weights), 1.0, rel_tol=1e-9):
        return tuple(weights)
    shares = [weight / largest for weight in weights]
    return tuple(share / math.fsum(shares) for share in shares)


def _number(value: Any, known: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise PreferenceError(f"{shown(value)} in alpha is not a number; {known}") from None


def _named(spec: str | Mapping[str, Any], objectives: Sequence[str], known: str) -> list[float]:
    pairs: list[tuple[str, Any]]
    if isinstance(spec, str):
        beginnings = "|".join(map(re.escape, objectives))
        parts = [part.partition("=") for part in re.split(rf"\s*,\s*|\s+(?=(?:{beginnings})\s*=)", spec.strip())]
        if bare := [name.strip() for name, equals, _ in parts if not equals]:
            raise PreferenceError(f"alpha mixes names and bare numbers at {bare[0]!r}; {known}")
        pairs = [(name.strip(), weight.strip()) for name, _, weight in parts]
    else:
        pairs = [(str(name), weight) for name, weight in spec.items()]
    given: dict[str, float] = {}
    for name, weight in pairs:
        if name not in objectives:
            raise PreferenceError(f"unknown objective {name!r}{meant(name, objectives)}; {known}")
        if name in given:
            raise PreferenceError(f"objective {name!r} is given twice; {known}")
        given[name] = _number(weight, known)
    return [given.get(name, 0.0) for name in objectives]


def format_alpha(alpha: Sequence[float] | None, objectives: Sequence[str]) -> str:
    """α as a person reads it: ``helpful=0.7 harmless=0.3``; None, no guidance, is ``base alone``."""
    if alpha is None:
        return "base alone"
    return " ".join(f"{name}={weight:.4g}" for name, weight in zip(objectives, alpha, strict=True))


def check_beta(beta: Any) -> float:
    """Returns β of guided decoding (Eq. 13) as a number, from 1e-6 to 1e6; 1/β is the strength of the guide."""
    try:
        return BETA.read(beta)
    except ValueError as reason:
        raise PreferenceError(f"beta {reason}", hint="smaller beta, stronger guide") from None


def parse_betas(spec: float | str | Sequence[float], guides: int) -> tuple[float, ...]:
    """Reads β, or one β_i for each of several guides: a number, ``"0.5,1"`` or a sequence.

    Raises:
        PreferenceError: A β is not a number from 1e-6 to 1e6, or there are neither one nor ``guides``.
    """
    values = spec.split(",") if isinstance(spec, str) else spec if isinstance(spec, Sequence) else [spec]
    betas = tuple(check_beta(value) for value in values)
    if len(betas) not in (1, guides):
        several = f", or one for each of the {guides} adapters" if guides > 1 else ""
        raise PreferenceError(f"beta has {len(betas)} numbers; give one{several}")
    return betas


def simplex_grid(k: int, step: float) -> list[Alpha]:
    """Returns every α for k objectives whose weights are multiples of a step, the first objective's weight falling.

    These are C(n + k − 1, k − 1) vectors, n = 1 / step: 11 from (1, 0) to (0, 1) for k = 2 and step 0.1.

    Raises:
        PreferenceError: k < 1, the step does not divide 1, or there are more than 10,000 vectors.
    """
    if k < 1:
        raise PreferenceError(f"a grid needs at least one objective, got k={k}")
    n = round(1 / step) if SMALLEST_STEP <= step <= 1 else 0
    if n == 0 or not math.isclose(n * step, 1.0, rel_tol=1e-6):
        raise PreferenceError(
            f"the grid step must divide 1 (0.1, 0.25, 0.5, …) and be at least {SMALLEST_STEP:g}, got {step:g}"
        )
    if (size := math.comb(n + k - 1, k - 1)) > GRID_SIZE:
        raise PreferenceError(
            f"a grid of step {step:g} for {k} objectives has {size:,} preferences, more than {GRID_SIZE:,}",
            hint="take a larger step, or list preferences in a file",
        )
    grid = []
    for bars in combinations(range(n + k - 1), k - 1):
        edges = (-1, *bars, n + k - 1)
        grid.append(tuple((right - left - 1) / n for left, right in pairwise(edges)))
    return sorted(grid, reverse=True)


def sample_dirichlet(rng: "np.random.Generator", concentration: float, k: int, size: int) -> "NDArray[np.float32]":
    """Draws α ~ Dirichlet(p·1) for k objectives, as training does (Algorithm 1).

    Args:
        rng: Source of randomness.
        concentration: p, from 1e-6 to 1e6. Below 1 the corners of the simplex are favoured, at 1 α is uniform.
        k: Number of objectives.
        size: Number of vectors.

    Returns:
        (size, k); each row sums to 1.
    """
    try:
        CONCENTRATION.read(concentration)
    except ValueError as reason:
        raise PreferenceError(f"the Dirichlet concentration {reason}") from None
    return rng.dirichlet([concentration] * k, size).astype("float32")
