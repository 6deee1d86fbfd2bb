"""Checks that two tokenizers give every token the same id, so that models can stand beside each other."""

from pathlib import Path

from parm_mlx.errors import ModelError
from parm_mlx.mlxlm import TokenizerWrapper


def check_vocabularies(
    base: TokenizerWrapper,
    other: TokenizerWrapper,
    base_path: Path,
    other_path: Path,
    role: str = "guide",
    of: str = "base",
    hint: str = "their token log-probabilities are combined, so both models need the same vocabulary",
) -> None:
    """Checks that two tokenizers give every token the same id, special tokens in one of them aside."""
    if reasons := vocabularies_differ(base, other):
        raise ModelError(
            f"{of} {base_path} and {role} {other_path} have different tokenizers: {'; '.join(reasons)}",
            hint=hint,
        )


def vocabularies_differ(base: TokenizerWrapper, other: TokenizerWrapper) -> list[str]:
    """Returns the reasons why two tokenizers cannot stand for each other; none where they can."""
    a, b = base.get_vocab(), other.get_vocab()
    by_id_a, by_id_b = ({i: token for token, i in vocab.items()} for vocab in (a, b))
    clash = sorted(i for i in by_id_a.keys() & by_id_b.keys() if by_id_a[i] != by_id_b[i])
    special = {**base.get_added_vocab(), **other.get_added_vocab()}
    unmatched = sorted(token for token in a.keys() ^ b.keys() if token not in special)
    reasons = []
    if clash:
        shown = ", ".join(f"{i} is {by_id_a[i]!r} and {by_id_b[i]!r}" for i in clash[:3])
        reasons.append(f"{len(clash)} ids stand for different tokens ({shown})")
    if unmatched:
        named = ", ".join(map(repr, unmatched[:3]))
        reasons.append(f"{len(unmatched)} tokens exist in only one of them ({named})")
    if not (base.eos_token_ids | other.eos_token_ids) & by_id_a.keys() & by_id_b.keys():
        reasons.append("they have no end-of-sequence token in common")
    return reasons
