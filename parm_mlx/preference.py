"""The preference vector α: parsing, names, validation, the simplex grid and Dirichlet samples.

α holds one weight per objective, on the simplex: each weight ≥ 0, the sum 1. Objectives are named, in the order of the
adapter that was trained for them.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations, pairwise
from typing import TYPE_CHECKING, Any

from parm_mlx.errors import PreferenceError
from parm_mlx.ranges import BETA, CONCENTRATION, GRID_SIZE, shown

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
    """Reads objective names.

    Args:
        spec: ``"helpful,harmless"`` or a sequence of names.
        k: How many names there must be, when that is known.

    Raises:
        PreferenceError: A name is empty, repeated, or holds ``=``, a comma or a control character, or there are not k
            of them.
    """
    names = tuple(name.strip() for name in (spec.split(",") if isinstance(spec, str) else spec))
    shown = ", ".join(names)
    if not names or not all(names):
        raise PreferenceError(f"objective names must not be empty, got {shown!r}")
    for name in names:
        if "=" in name or "," in name:
            raise PreferenceError(f"objective name {name!r} must not hold '=' or ','")
        if not name.isprintable():
            raise PreferenceError(f"objective name {name!r} must not hold control characters")
        if names.count(name) > 1:
            raise PreferenceError(f"objective {name!r} is named twice")
    if k is not None and len(names) != k:
        raise PreferenceError(f"{len(names)} objective name(s) given ({shown}) for an adapter with {k} objectives")
    return names


def parse_alpha(spec: AlphaSpec, objectives: Sequence[str]) -> Alpha:
    """Reads and normalises a preference vector.

    Args:
        spec: ``"0.7,0.3"`` (one weight per objective, in order), ``"helpful=0.7,harmless=0.3"`` (objectives left out
            weigh 0), a sequence of k weights, or a mapping from objective to weight.
        objectives: The k objectives, in order.

    Returns:
        k weights, each ≥ 0, that sum to 1.

    Raises:
        PreferenceError: The number of weights is not k, a weight is negative or not finite, all are zero, or a name is
            unknown or repeated.
    """
    known = f"the objectives are {', '.join(objectives)} (k={len(objectives)})"
    if isinstance(spec, str):
        weights = _named(_pairs(spec, known), objectives, known) if "=" in spec else _numbers(spec, known)
    elif isinstance(spec, Mapping):
        weights = _named([(str(name), weight) for name, weight in spec.items()], objectives, known)
    else:
        weights = [_number(weight, known) for weight in _items(spec, known)]
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


def _items(spec: Any, known: str) -> list[Any]:
    try:
        return list(spec)
    except TypeError:
        raise PreferenceError(f"alpha must be a list of weights or name=weight pairs, got {spec!r}; {known}") from None


def _number(value: Any, known: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        raise PreferenceError(f"{shown(value)} in alpha is not a number; {known}") from None


def _numbers(spec: str, known: str) -> list[float]:
    if not spec.strip():
        raise PreferenceError(f"alpha is empty; {known}")
    return [_number(part.strip(), known) for part in spec.split(",")]


def _pairs(spec: str, known: str) -> list[tuple[str, Any]]:
    pairs = []
    for part in spec.split(","):
        name, equals, weight = part.partition("=")
        if not equals:
            raise PreferenceError(f"alpha mixes names and bare numbers at {part.strip()!r}; {known}")
        pairs.append((name.strip(), weight.strip()))
    return pairs


def _named(pairs: Sequence[tuple[str, Any]], objectives: Sequence[str], known: str) -> list[float]:
    weights = dict.fromkeys(objectives, 0.0)
    seen: set[str] = set()
    for name, weight in pairs:
        if name not in weights:
            raise PreferenceError(f"unknown objective {name!r}; {known}")
        if name in seen:
            raise PreferenceError(f"objective {name!r} is given twice; {known}")
        seen.add(name)
        weights[name] = _number(weight, known)
    return list(weights.values())


def format_alpha(alpha: Sequence[float], objectives: Sequence[str]) -> str:
    """α as a person reads it: ``helpful=0.7 harmless=0.3``."""
    return " ".join(f"{name}={weight:.4g}" for name, weight in zip(objectives, alpha, strict=True))


def check_beta(beta: Any) -> float:
    """Checks β of guided decoding (Eq. 13), where 1/β is the strength of the guide.

    Raises:
        PreferenceError: β is not a number from 1e-6 to 1e6.
    """
    try:
        return BETA.read(beta)
    except ValueError as reason:
        raise PreferenceError(f"beta {reason}", hint="smaller beta, stronger guide") from None


def parse_betas(spec: float | str | Sequence[float], guides: int) -> tuple[float, ...]:
    """Reads β, or one β_i for each of several reward models that guide together.

    Args:
        spec: A number, ``"0.5,1"`` or a sequence.
        guides: Number of reward models.

    Returns:
        One number, or ``guides`` of them.

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
    """Every α whose weights are multiples of a step, the first objective's weight falling.

    Args:
        k: Number of objectives, ≥ 1.
        step: Distance between neighbouring weights; 1 / step must be a whole number.

    Returns:
        C(n + k − 1, k − 1) vectors, n = 1 / step. For k = 2 and step 0.1: 11 of them, from (1, 0) to (0, 1).

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
    """Draws α ~ Dirichlet(p·1), as training does (Algorithm 1).

    Args:
        rng: Source of randomness.
        concentration: p > 0. Below 1 the corners of the simplex are favoured, at 1 α is uniform.
        k: Number of objectives.
        size: Number of vectors.

    Returns:
        float32 array (size, k); each row sums to 1.

    Raises:
        PreferenceError: p is not a number from 1e-6 to 1e6.
    """
    try:
        CONCENTRATION.read(concentration)
    except ValueError as reason:
        raise PreferenceError(f"the Dirichlet concentration {reason}") from None
    return rng.dirichlet([concentration] * k, size).astype("float32")
