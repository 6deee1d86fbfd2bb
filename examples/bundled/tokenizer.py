"""The tokenizer of the bundled model: byte-level BPE trained on the text world, with a chat template."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import dialogues
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 2048
SPECIALS = ["<s>", "<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
TEMPLATE = Path(__file__).with_name("chat_template.jinja")


def _texts(seed: int, count: int) -> Iterator[str]:
    for talk in itertools.islice(dialogues.stream(seed), count):
        for message in talk:
            yield message["content"]


def train(seed: int, count: int = 20000) -> PreTrainedTokenizerFast:
    """Trains the tokenizer on the first ``count`` conversations of a stream.

    Args:
        seed: Seed of the stream.
        count: Number of conversations.

    Returns:
        A tokenizer of VOCABULARY tokens that can encode any text, with ``<s>`` and ``<|end|>`` as its ends.
    """
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(seed, count), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="<|end|>",
        pad_token="<|end|>",
        additional_special_tokens=SPECIALS[2:],
        chat_template=TEMPLATE.read_text(encoding="utf-8").strip(),
        clean_up_tokenization_spaces=False,
        model_max_length=1024,
    )
