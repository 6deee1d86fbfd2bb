"""The exception tree. The command line turns these, and only these, into one clear line and an exit code.

ParmError                  exit 1
├── InputError             exit 2: what the user gave is wrong, and nothing was changed
│   ├── PreferenceError    a preference vector, an objective name, β
│   ├── AdapterError       an adapter directory, or an adapter that does not fit its model
│   ├── ModelError         a model or tokenizer directory
│   ├── DataError          preference data
│   ├── ConfigError        settings
│   ├── CheckpointError    checkpoints of a training run
│   └── OutputError        an output that exists or cannot be written
├── RunError               exit 1: something failed while running
│   └── LostError          another process of a distributed run is gone
└── QuietError             an error of a distributed run, in the processes that do not show it
"""


class ParmError(Exception):
    """Base of every error this package raises on purpose: what is wrong and where, and a hint at what to do."""

    exit_code = 1
    agreed = False  # all processes of a distributed run have it, or an error in its place

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class InputError(ParmError):
    """Wrong usage or wrong input."""

    exit_code = 2


class PreferenceError(InputError):
    """A preference vector, an objective name or a β that cannot be used."""


class AdapterError(InputError):
    """An adapter that cannot be read, or that does not fit its model."""


class ModelError(InputError):
    """A model or tokenizer that cannot be read, or models that do not fit each other."""


class DataError(InputError):
    """Preference data that cannot be used."""


class ConfigError(InputError):
    """Settings that cannot be used."""


class CheckpointError(InputError):
    """Checkpoints of a training run that cannot be read, or that belong to another run."""


class OutputError(InputError):
    """An output that exists already or cannot be written."""


class RunError(ParmError):
    """A failure while running: a download, a full disk, a loss that is not finite."""


class LostError(RunError):
    """Another process of the run is gone."""


class QuietError(ParmError):
    """Ends a process because of an error that another process shows, with its exit code."""

    def __init__(self, exit_code: int) -> None:
        super().__init__("")
        self.exit_code = exit_code


def first_line(error: BaseException) -> str:
    """Returns the first line of an exception's message, or the name of its class if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip()
