"""What a user would give on every command line: the file of their own settings, and environment variables.

``~/.config/parm-mlx/settings.yaml`` (below ``XDG_CONFIG_HOME`` where that is set; ``PARM_MLX_SETTINGS`` names another
file, and none where it is empty) holds ``name: value`` lines. Each gives the value of an environment variable that is
not set, as ``model: llama-8b`` does for ``PARM_MLX_MODEL``. A flag comes before a variable, a variable before the file.
"""

import os
from pathlib import Path

from parm_mlx.errors import ConfigError
from parm_mlx.files import expanded, read_yaml
from parm_mlx.ranges import shown
from parm_mlx.settings import TEXT

FILE = "PARM_MLX_SETTINGS"
NAMES = ("model", "parm", "guide_model", "alpha", "beta")  # of generate, chat and evaluate


def variable(name: str) -> str:
    """Returns the environment variable of a setting."""
    return f"PARM_MLX_{name.upper()}"


def apply_settings() -> None:
    """Sets the environment variables that a user's settings file gives and that are not set.

    Raises:
        ConfigError: The file cannot be read, or a setting is unknown or not a plain value.
    """
    named = os.environ.get(FILE)
    home = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    path = expanded(named if named is not None else Path(home, "parm-mlx", "settings.yaml"), ConfigError)
    if named == "" or (named is None and not path.exists()):
        return
    content = read_yaml(path, "settings", ConfigError)
    if not isinstance(content, dict | None):
        raise ConfigError(f"settings {path} must hold 'name: value' lines")
    for key, value in (content or {}).items():
        name = str(key).replace("-", "_")
        if name not in NAMES:
            raise ConfigError(f"settings {path}: unknown setting {shown(key)}", hint=f"there are {', '.join(NAMES)}")
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ConfigError(f"settings {path}: {name} must be text or a number, got {shown(value)}")
        try:
            os.environ.setdefault(variable(name), TEXT.read(value))
        except ValueError as reason:
            raise ConfigError(f"settings {path}: {name} {reason}") from None
