"""The models that names stand for, and what adapters record of theirs; nothing is loaded."""

from collections.abc import Callable, Sequence
from pathlib import Path

from parm_mlx.errors import AdapterError, ModelError, RunError
from parm_mlx.files import NAMED, resolve
from parm_mlx.pblora.adapter import find_backbone, read_config
from parm_mlx.pblora.config import PBLoRAConfig

_MODELS = Path(__file__).parents[1] / "models"


def proposed_betas(adapters: Sequence[str | Path]) -> tuple[float, ...]:
    """The β for each adapter that its training proposes, 1 where it does not; one number if they are the same."""
    betas = tuple(read_config(resolve(adapter, "adapter")).beta or 1.0 for adapter in adapters)
    return betas if len(set(betas)) > 1 else betas[:1] or (1.0,)


def recorded_backbone(parm: str | Path) -> Path:
    """The backbone that an adapter records."""
    adapter = resolve(parm, "adapter")
    return backbone_of(adapter, read_config(adapter), None)


def backbone_of(adapter: Path, config: PBLoRAConfig, given: str | Path | None) -> Path:
    """The directory of an adapter's backbone: the one that is given, or what its settings record."""
    if given is not None:
        return resolve(given, "guide model")
    recorded = find_backbone(adapter, config)
    if recorded is None:
        raise AdapterError(f"adapter {adapter} does not record its backbone", hint="name it with --guide-model")
    try:
        return resolve(recorded, "guide model")
    except ModelError as error:
        hint = f"adapter {adapter} was trained on this backbone; --guide-model DIR says where it is now"
        raise ModelError(str(error), hint=hint) from None


def held_out_prompts(name: str) -> list[str]:
    """Returns the questions that the PARM of a name was not trained on."""
    return (_MODELS / f"{name}_held_out.txt").read_text(encoding="utf-8").splitlines()


def named_models(
    model: str | Path | None,
    parm: str | Path | Sequence[str | Path] | None,
    guide_model: str | Path | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> tuple[str, list[str]]:
    """Returns base and adapters, directories or hub ids, where some or all of them are left out.

    Where none is given they are ``smollm2``; ``bundled`` and a note where that is neither here nor can be fetched. The
    adapter of a model with a name is that of the name. The base of an adapter is its backbone. There are no adapters
    where a model has none.

    Raises:
        AdapterError: The adapter cannot be read or records no backbone.
    """
    adapters = [str(each) for each in ([parm] if isinstance(parm, str | Path) else parm or [])]
    if model is None and guide_model is None:
        model = str(recorded_backbone(adapters[0])) if adapters else _default(note)
    model = str(model or guide_model)
    return model, adapters or [model] * (model in NAMED)


def _default(note: Callable[[str], None]) -> str:
    *preferred, last = NAMED
    for name in preferred:
        try:
            resolve(name)
            return name
        except RunError as error:
            note(f"{error}; the model {last} answers in its place")
    return last
