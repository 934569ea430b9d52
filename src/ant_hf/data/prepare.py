"""The data a recipe trains on: tokenizer and packed tokens, made or reused, and what they hold."""

from __future__ import annotations

from typing import Any

from tokenizers import Tokenizer

from ant_hf.data.corpus import Corpus
from ant_hf.data.packing import pack
from ant_hf.data.tokenizer import prepare_tokenizer
from ant_hf.data.tokens import TRAIN, VALIDATION, verify_shards
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.utils.console import say
from ant_hf.utils.files import read_json
from ant_hf.utils.locks import locked
from ant_hf.utils.names import FRAGMENTATION, MANIFEST


def make_data(recipe: Recipe, model_max_length: int) -> None:
    """Make or reuse tokenizer and tokens.

    Raises:
        AntError: see `make_tokenizer` and `make_tokens`.
    """
    make_tokenizer(recipe, model_max_length)
    make_tokens(recipe)


def find_data(recipe: Recipe, model_max_length: int) -> None:
    """On a machine that is not the first: check the tokens the first one made, or make them here too.

    Where data_dir is shared they are there already, and this machine needs no corpus.

    Raises:
        AntError: a shard is damaged; or see `make_data`.
    """
    if (recipe.tokens_dir / MANIFEST).exists():
        verify_shards(recipe.tokens_dir)
    else:
        make_data(recipe, model_max_length)


def make_tokenizer(recipe: Recipe, model_max_length: int) -> Tokenizer:
    """Train or reuse the recipe's tokenizer, and say how it fragments held-out text.

    Raises:
        AntError: see `prepare_tokenizer` and the corpus sources.
    """
    corpus = Corpus.from_recipe(recipe.corpus)
    folder = recipe.tokenizer_dir
    with locked(folder.parent, "data", wait=True):
        tokenizer, reused = prepare_tokenizer(corpus, recipe.tokenizer, folder, model_max_length)
    say(f"tokenizer   {folder} ({'reused' if reused else 'trained'}, {tokenizer.get_vocab_size():,} entries)")
    report = read_json(folder / FRAGMENTATION, "fragmentation report", f"Remove {folder} to make it anew.")
    say(
        f"            held-out text: {report['bytes_per_token']:.2f} bytes a token, "
        f"{report['tokens_per_word']:.2f} tokens a word, {report['words_kept_whole']:.1%} of words kept whole"
    )
    return tokenizer


def make_tokens(recipe: Recipe) -> dict[str, Any]:
    """Pack the recipe's corpus with its tokenizer, or reuse what is there after checking every hash.

    Raises:
        AntError: see `pack`; or the validation split is empty, or too short to be scored.
    """
    corpus = Corpus.from_recipe(recipe.corpus)
    folder = recipe.tokens_dir
    with locked(folder.parent, "data", wait=True):
        manifest, reused = pack(corpus, recipe.tokenizer_dir, folder, recipe.corpus.max_tokens)
    if reused:
        verify_shards(folder)
    counts, splits = manifest["documents"], manifest["splits"]
    say(f"tokens      {folder} ({'reused, hashes verified' if reused else 'packed'})")
    for name in (TRAIN, VALIDATION):
        split = splits[name]
        say(
            f"            {name:<10} {split['documents']:>9,} documents {split['tokens']:>13,} tokens "
            f"{split['bytes']:>14,} bytes"
        )
    say(
        f"            {counts['read']:,} documents read: {counts['empty']:,} empty, "
        f"{counts['duplicate']:,} duplicates, {counts['past_limit']:,} past max_tokens"
    )
    if by_set := counts.get("contaminated_by_set"):
        shared = ", ".join(f"{name} {count:,}" for name, count in by_set.items() if count)
        say(f"            {counts['contaminated']:,} left out, sharing text with {shared or 'no set'}")
    held_out = splits[VALIDATION]
    # The first token is not scored and an end of text counts no bytes: of two tokens, none are left.
    if held_out["tokens"] <= 2:
        raise AntError(
            "the one document of the validation split is too short to be scored"
            if held_out["documents"]
            else "no document fell into the validation split",
            seen=f"{held_out['tokens']} tokens at validation_fraction {recipe.corpus.validation_fraction}",
            hint="Raise it: --set corpus.validation_fraction=0.1, and remove " + str(folder),
        )
    return manifest
