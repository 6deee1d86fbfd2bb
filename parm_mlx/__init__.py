"""PARM on MLX: steer a language model by a preference vector while it generates."""

from typing import TYPE_CHECKING, Any

from parm_mlx import machine, named

FAST_BLAS = machine.preload_blas()
named.register()

if TYPE_CHECKING:
    __version__: str
    from parm_mlx.evaluation.evaluate import evaluate
    from parm_mlx.guidance.guide import Guide
    from parm_mlx.guidance.guided import GuidedModel
    from parm_mlx.guidance.loading import load, load_guide
    from parm_mlx.training.run import train

_PUBLIC = {
    "evaluate": "parm_mlx.evaluation.evaluate",
    "load": "parm_mlx.guidance.loading",
    "load_guide": "parm_mlx.guidance.loading",
    "train": "parm_mlx.training.run",
    "Guide": "parm_mlx.guidance.guide",
    "GuidedModel": "parm_mlx.guidance.guided",
}

__all__ = ["Guide", "GuidedModel", "evaluate", "load", "load_guide", "train"]


def __getattr__(name: str) -> Any:
    """Imports the public names on first use, so that ``parm-mlx --help`` does not wait for MLX."""
    if name in _PUBLIC:
        from importlib import import_module

        try:
            return getattr(import_module(_PUBLIC[name]), name)
        except ImportError as error:
            if machine.lacks_backend(error):
                raise ImportError(machine.NO_BACKEND) from error
            raise
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("parm-mlx")
        except PackageNotFoundError:
            return "0+unknown"
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
