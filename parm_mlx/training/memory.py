"""Memory of training: a rough estimate before the model is loaded, and the measured peak of the largest batch."""

from collections.abc import Sequence
from itertools import cycle, islice

import mlx.core as mx

from parm_mlx.data.tokenize import TokenPair
from parm_mlx.errors import RunError
from parm_mlx.files import resolve
from parm_mlx.fingerprint import safetensors_header
from parm_mlx.machine import usable_memory
from parm_mlx.mlxlm import config_rows, weight_files
from parm_mlx.pblora.config import DEFAULT_TARGETS
from parm_mlx.training.batching import make_batch
from parm_mlx.training.config import TrainConfig
from parm_mlx.training.progress import Progress
from parm_mlx.training.response_logprobs import CHUNK
from parm_mlx.training.train_step import TrainStep

HINT = "try a smaller --batch-size with more --grad-accumulation-steps, --grad-checkpoint, or a lower --max-seq-length"


def estimate(config: TrainConfig) -> tuple[int, int, int]:
    """Estimates the bytes that a run needs whatever its batches are: weights, adapter, logits.

    The adapter is counted with its gradient and Adam's two moments, in float32, on q, k and v if no target modules are
    given; the logits are those of a chunk of tokens, with their gradient.

    Raises:
        ModelError: There is no such model.
    """
    model = resolve(config.model)
    files = weight_files(model)
    tensors = {name: entry for file in files for name, entry in safetensors_header(file).items() if "shape" in entry}
    targets = tuple(f"{name}.weight" for name in config.target_modules or DEFAULT_TARGETS)
    hidden = max((entry["shape"][0] for name, entry in tensors.items() if name.endswith("norm.weight")), default=0)
    sizes = (entry["shape"][0] + hidden for name, entry in tensors.items() if name.endswith(targets))
    return (
        sum(file.stat().st_size for file in files),
        4 * 4 * (config.r1 + config.r2) * sum(sizes),
        2 * 4 * CHUNK * (config_rows(model) or 0),
    )


def announce(config: TrainConfig) -> str:
    """Returns the estimate in words."""
    parts = estimate(config)
    weights, adapter, logits = map(gigabytes, parts)
    return (
        f"memory, estimated: {gigabytes(sum(parts))} (weights {weights}, adapter with optimizer {adapter}, logits "
        f"{logits}) and the activations of a batch; this machine has {gigabytes(usable_memory())}"
    )


def check_largest_batch(train_step: TrainStep, pairs: Sequence[TokenPair], size: int, progress: Progress) -> None:
    """Computes loss and gradients of the longest pairs once, without an update, and reports MLX's peak.

    A batch that does not fit fails here and not after hours. The run does not change: each step seeds its own dropout.
    ``size`` is the number of pairs per step; those of one micro-batch are computed.

    Raises:
        RunError: MLX cannot allocate that much.
    """
    longest = cycle(sorted(pairs, key=len, reverse=True))
    batch = make_batch(list(islice(longest, -(-size // train_step.micro_batches))))
    k = train_step.beta.size
    shape = (k,) if train_step.smoothing is not None else (len(batch.pairs), k)
    mx.reset_peak_memory()
    try:
        train_step.micro_batch_gradients(batch, mx.full(shape, 1 / k))
    except RuntimeError as error:
        if "alloc" not in str(error):
            raise
        raise RunError(f"the largest batch does not fit into memory: {error}", hint=HINT) from error
    mx.clear_cache()
    peak, usable = mx.get_peak_memory(), usable_memory()
    message = f"memory: {gigabytes(peak)} at the peak of the largest batch, of {gigabytes(usable)}"
    if peak > usable:
        progress.warn(f"{message}; {HINT}")
    else:
        progress.note(message)


def gigabytes(size: int) -> str:
    """Returns a size in GB (10⁹ bytes)."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e9:.2f} GB"
