"""The data a recipe trains on: tokenizer and packed tokens, made or reused, and what they hold."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer
from tqdm import tqdm

from ant_hf.data.corpus import Corpus
from ant_hf.data.packing import pack
from ant_hf.data.tokenizer import (
    RECORD,
    fragmentation_report,
    load_tokenizer,
    read_record,
    save_tokenizer,
    train_bpe,
)
from ant_hf.data.tokens import TRAIN, VALIDATION, verify_shards
from ant_hf.errors import AntError
from ant_hf.recipe import Recipe
from ant_hf.utils.console import say
from ant_hf.utils.files import (
    check_made_of,
    file_sha256,
    fingerprint,
    read_json,
    whole_folder,
    write_json,
    write_sealed,
    writing,
)
from ant_hf.utils.locks import locked
from ant_hf.utils.names import FRAGMENTATION, MANIFEST

# Enough words for three digits of every figure in the fragmentation report.
_HELD_OUT_CHARACTERS = 4_000_000


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
    if not (recipe.tokens_dir / MANIFEST).exists():
        make_data(recipe, model_max_length)
    else:
        verify_shards(recipe.tokens_dir)


def make_tokenizer(recipe: Recipe, model_max_length: int) -> Tokenizer:
    """Train the recipe's tokenizer on the training split or reuse the one that is there, and say what it is.

    Raises:
        AntError: the folder holds a tokenizer made of something else, or there is no text.
    """
    corpus, folder = Corpus.from_recipe(recipe.corpus), recipe.tokenizer_dir
    with locked(folder.parent, "data", wait=True):
        inputs = {
            "corpus": corpus.identity(),
            "tokenizer": recipe.tokenizer.model_dump(),
            "model_max_length": model_max_length,
        }
        if (folder / RECORD).exists():
            how, tokenizer = "reused", load_tokenizer(folder)
            check_made_of(folder, "a tokenizer", read_record(folder), inputs)
        else:
            # Here and not above: matplotlib takes half a second, and few commands train a tokenizer.
            from ant_hf.utils.plots import plot_fragmentation

            held_out: list[str] = []
            how = "trained"
            tokenizer = train_bpe(_training_texts(corpus, recipe, held_out), recipe.tokenizer)
            # Files of about 40 bytes an entry and as much again for the report and its figure.
            room = 200_000 + 80 * recipe.tokenizer.vocab_size
            with writing("the tokenizer", folder, room), whole_folder(folder) as partial:
                save_tokenizer(tokenizer, partial, model_max_length)
                report = fragmentation_report(tokenizer, held_out)
                write_json(partial / FRAGMENTATION, report)
                plot_fragmentation(report, partial / "fragmentation.png")
                record = {
                    "format_version": 2,
                    "inputs_sha256": fingerprint(inputs),
                    "inputs": inputs,
                    "files": {path.name: file_sha256(path) for path in sorted(partial.iterdir())},
                }
                write_sealed(partial / RECORD, record)
    say(f"tokenizer   {folder} ({how}, {tokenizer.get_vocab_size():,} entries)")
    report = read_json(folder / FRAGMENTATION, "fragmentation report", f"Remove {folder} to make it anew.")
    say(
        f"            held-out text: {report['bytes_per_token']:.2f} bytes a token, "
        f"{report['tokens_per_word']:.2f} tokens a word, {report['words_kept_whole']:.1%} of words kept whole"
    )
    return tokenizer


def _training_texts(corpus: Corpus, recipe: Recipe, held_out: list[str]) -> Iterator[str]:
    """Texts of the training split; the first held-out ones met on the way go to `held_out`."""
    read = held_out_characters = 0
    with tqdm(desc="tokenizer: reading", unit="B", unit_scale=True, leave=False) as bar:
        for document in corpus:
            if not document.is_validation:
                size = len(document.text.encode())
                read += size
                bar.update(size)
                yield document.text
                if read >= recipe.tokenizer.max_bytes:
                    return
            elif held_out_characters < _HELD_OUT_CHARACTERS:
                held_out.append(document.text)
                held_out_characters += document.characters
    if read:
        return
    counts = corpus.counts
    if not counts.validation:
        raise AntError(
            "the corpus holds no text to train on",
            seen=f"{counts.read:,} documents, {counts.empty:,} of them empty, "
            f"{counts.contaminated:,} shared with evaluation sets",
            hint="Look into what corpus.path (--data) names.",
        )
    raise AntError(
        f"all documents of the corpus with text in them, {counts.validation:,}, are held out",
        hint="A txt file is one document; separate several by lines of <|endoftext|>, or pass more files. "
        "With many, lower corpus.validation_fraction.",
    )


def make_tokens(recipe: Recipe) -> dict[str, Any]:
    """Pack the recipe's corpus with its tokenizer, or reuse what is there after checking every hash.

    Raises:
        AntError: see `pack`; or the validation split is empty, or too short to be scored.
    """
    folder = recipe.tokens_dir
    with locked(folder.parent, "data", wait=True):
        manifest, reused = pack(recipe)
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
