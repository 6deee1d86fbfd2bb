"""The only package that uses parts of mlx-lm outside its public interface; an upgrade fails in tests/mlxlm/ first."""

from mlx_lm.generate import BatchGenerator, TextStateMachine, generate_step, generation_stream
from mlx_lm.models import cache as _mlx_cache
from mlx_lm.models import llama
from mlx_lm.models.cache import LRUPromptCache, make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import dequantize_model

from parm_mlx.mlxlm.across import AcrossCache, ForkedEntry, ReadSequence, are_plain
from parm_mlx.mlxlm.caches import Snapshot, bears_padding, can_batch, joined, limit_caches, only_grows, rewind, row_of
from parm_mlx.mlxlm.generation import (
    AgreedBatchGenerator,
    filter_logprobs,
    penalty_processors,
    reporting_callback,
    wired_limit,
)
from parm_mlx.mlxlm.logits import scale_logits
from parm_mlx.mlxlm.models import (
    Layer,
    attention_windows,
    config_rows,
    context_length,
    embedding_rows,
    is_quantized,
    load_backbone,
    load_tokenizer_alone,
    load_weights_and_tokenizer,
    quantized_numbers,
    trunk_and_output_layer,
)
from parm_mlx.mlxlm.pair import PairCache
from parm_mlx.mlxlm.preference import PreferenceCache
from parm_mlx.mlxlm.prefix import PrefixCache
from parm_mlx.mlxlm.saving import save_converted, save_like
from parm_mlx.mlxlm.settings import config_dtype, read_config
from parm_mlx.mlxlm.settings import levels as config_levels
from parm_mlx.mlxlm.sharding import (
    cut_blocks,
    cut_layers,
    evaluate_one_by_one,
    run_before,
    shard_modes,
)
from parm_mlx.mlxlm.weights import check_finite, check_finite_files, weight_files

# mlx-lm's load_prompt_cache finds the kinds of entries by name in this module.
for _entry in (AcrossCache, PairCache, PreferenceCache):
    setattr(_mlx_cache, _entry.__name__, _entry)

__all__ = [
    "AcrossCache",
    "AgreedBatchGenerator",
    "BatchGenerator",
    "ForkedEntry",
    "LRUPromptCache",
    "Layer",
    "PairCache",
    "PreferenceCache",
    "PrefixCache",
    "ReadSequence",
    "Snapshot",
    "TextStateMachine",
    "TokenizerWrapper",
    "are_plain",
    "attention_windows",
    "bears_padding",
    "can_batch",
    "check_finite",
    "check_finite_files",
    "config_dtype",
    "config_levels",
    "config_rows",
    "context_length",
    "cut_blocks",
    "cut_layers",
    "dequantize_model",
    "embedding_rows",
    "evaluate_one_by_one",
    "filter_logprobs",
    "generate_step",
    "generation_stream",
    "is_quantized",
    "joined",
    "limit_caches",
    "llama",
    "load_backbone",
    "load_tokenizer_alone",
    "load_weights_and_tokenizer",
    "make_prompt_cache",
    "only_grows",
    "penalty_processors",
    "quantized_numbers",
    "read_config",
    "reporting_callback",
    "rewind",
    "row_of",
    "run_before",
    "save_converted",
    "save_like",
    "scale_logits",
    "shard_modes",
    "trunk_and_output_layer",
    "weight_files",
    "wired_limit",
]
