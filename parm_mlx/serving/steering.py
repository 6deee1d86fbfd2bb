"""Which model and preference a request asks for: in its body, in a header, in the model's name, or by default."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from parm_mlx.errors import PreferenceError
from parm_mlx.preference import Alpha, AlphaSpec, check_beta, parse_alpha
from parm_mlx.serving.errors import RequestError

BASE = "base"
HEADER = "x-parm-alpha"
AT = "@"


@dataclass(frozen=True)
class Steering:
    """The preference that an answer follows; α is None for the base alone."""

    alpha: Alpha | None
    beta: float | None


@dataclass(frozen=True)
class Menu:
    """What can be asked for.

    Attributes:
        name: Of the model, as clients write it.
        objectives: Those that α weighs; none where the base alone is served.
        default: α of a request that does not say; None is the base alone.
        beta: β of a request that does not say; None where requests cannot set one.
    """

    name: str
    objectives: tuple[str, ...]
    default: Alpha | None
    beta: float | None

    def names(self) -> list[str]:
        """The models that are listed: the default, the base alone, the corners, and all objectives in equal parts."""
        if not self.objectives:
            return [self.name]
        equal = ",".join(f"{objective}={1 / len(self.objectives):.3g}" for objective in self.objectives)
        corners = [f"{objective}=1" for objective in self.objectives]
        presets = [BASE, *corners, *([equal] if len(self.objectives) > 1 else [])]
        return [self.name, *(f"{self.name}{AT}{preset}" for preset in presets)]

    def weights(self, alpha: Alpha | None) -> dict[str, float] | str:
        """A preference as an answer reports it: weights by name, or ``"base"``."""
        return BASE if alpha is None else dict(zip(self.objectives, alpha, strict=True))

    def steering(self, model: str, alpha: Any, beta: float | None, headers: Mapping[str, str]) -> Steering:
        """Reads what a request asks for.

        Raises:
            RequestError: The model is another one, α or β is wrong, or the ways of giving α contradict each other.
        """
        preset = model.removeprefix(self.name + AT) if model.startswith(self.name + AT) else None
        if model != self.name and preset is None:
            raise RequestError(
                f"the model is {self.name}, got {model[:100]!r}", 404, param="model", code="model_not_found"
            )
        ways = {
            "the model's name": (preset, "model") if preset is not None else None,
            f"the header {HEADER}": (headers[HEADER], HEADER) if HEADER in headers else None,
            "alpha": (alpha, "alpha") if alpha is not None else None,
        }
        given = {way: self._alpha(*spec) for way, spec in ways.items() if spec is not None}
        if len(set(given.values())) > 1:
            raise RequestError(f"{' and '.join(given)} give different preferences", param="alpha")
        found = next(iter(given.values())) if given else self.default
        return Steering(found, self._beta(beta, found))

    def _alpha(self, spec: AlphaSpec, param: str) -> Alpha | None:
        if isinstance(spec, str) and spec.strip() == BASE:
            return None
        if not self.objectives:
            raise RequestError("no PARM is served, so alpha can only be base", param=param)
        try:
            return parse_alpha(spec, self.objectives)
        except PreferenceError as error:
            raise RequestError(str(error), param=param) from None

    def _beta(self, beta: float | None, alpha: Alpha | None) -> float | None:
        if beta is None:
            return None
        if self.beta is None:
            why = "the guides have one each" if self.objectives else "no PARM is served"
            raise RequestError(f"beta cannot be set by a request: {why}", param="beta")
        if alpha is None:
            raise RequestError("beta is given, but the base answers alone", param="beta")
        try:
            return check_beta(beta)
        except PreferenceError as error:
            raise RequestError(str(error), param="beta") from None


def presets(menu: Menu) -> Sequence[dict[str, Any]]:
    """The list of models in OpenAI's shape."""
    return [{"id": name, "object": "model", "created": 0, "owned_by": "parm-mlx"} for name in menu.names()]
