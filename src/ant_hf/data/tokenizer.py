"""Documents become a byte-level BPE tokenizer that every Transformers since 4.57 loads.

Byte-level means that all 256 bytes are entries, so any text survives encoding and decoding, and
an unknown token does not exist. The pre-tokenizer is GPT-2's, after single digits when asked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from ant_hf.data.corpus import Corpus
from ant_hf.data.fragmentation import fragmentation_report
from ant_hf.errors import AntError
from ant_hf.recipe import TokenizerRecipe
from ant_hf.utils.disk import writing
from ant_hf.utils.files import (
    check_file,
    check_made_of,
    file_sha256,
    fingerprint,
    read_sealed,
    whole_folder,
    write_json,
    write_sealed,
)
from ant_hf.utils.names import FRAGMENTATION
from ant_hf.utils.plots import plot_fragmentation

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
SPECIAL_TOKENS = (END_OF_TEXT, PAD)
_RECORD = "training.json"
# Enough words for three digits of every figure in the fragmentation report.
_HELD_OUT_CHARACTERS = 4_000_000
# Pairs seen once would make merges out of single documents.
_MIN_FREQUENCY = 2


def train_bpe(texts: Iterable[str], recipe: TokenizerRecipe, show_progress: bool = False) -> Tokenizer:
    """Train a byte-level BPE; the same texts in the same order give the same tokenizer.

    Memory holds the distinct words and their counts, not the texts; `recipe.max_bytes` bounds them.

    Raises:
        AntError: the texts have too few distinct words for `vocab_size` entries.
    """
    tokenizer = Tokenizer(models.BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits = [pre_tokenizers.Digits(individual_digits=True)] if recipe.split_digits else []
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*digits, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=recipe.vocab_size,
        min_frequency=_MIN_FREQUENCY,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(texts, trainer)
    size = tokenizer.get_vocab_size()
    if size != recipe.vocab_size:
        raise AntError(
            f"the text is too small for a vocabulary of {recipe.vocab_size} entries",
            seen=f"{size} entries",
            hint=f"Add text or lower tokenizer.vocab_size (and the architecture's) to at most {size}.",
        )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, model_max_length: int) -> None:
    """Write the files that `AutoTokenizer.from_pretrained(folder)` reads."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        pad_token=PAD,
        model_max_length=model_max_length,
        clean_up_tokenization_spaces=False,
    )
    fast.save_pretrained(folder)
    make_portable(folder)


def make_portable(folder: Path) -> None:
    """Name the tokenizer class that both transformers 4.57 and 5 know.

    transformers 5 writes `TokenizersBackend`, which 4.57 cannot import.
    """
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    # Only says on which kind of disk the files lay.
    settings.pop("is_local", None)
    settings.pop("local_files_only", None)
    write_json(path, settings)


def prepare_tokenizer(
    corpus: Corpus, recipe: TokenizerRecipe, folder: Path, model_max_length: int, show_progress: bool = True
) -> tuple[Tokenizer, bool]:
    """Train a tokenizer on the training split and write its folder, or reuse the one that is there.

    Returns:
        The tokenizer, and whether it was there already.

    Raises:
        AntError: the folder holds a tokenizer made of something else, or there is no text.
    """
    inputs = {
        "corpus": corpus.identity(),
        "tokenizer": recipe.model_dump(),
        "model_max_length": model_max_length,
    }
    if (folder / _RECORD).exists():
        tokenizer = load_tokenizer(folder)
        made_of = read_sealed(folder / _RECORD, "tokenizer record", f"Remove {folder} to train it anew.")
        check_made_of(folder, "a tokenizer", made_of, inputs)
        return tokenizer, True
    held_out: list[str] = []
    texts = _training_texts(corpus, recipe.max_bytes, held_out, show_progress)
    tokenizer = train_bpe(texts, recipe, show_progress)
    # Files of about 40 bytes an entry and as much again for the report and its figure.
    with writing("the tokenizer", folder, 200_000 + 80 * recipe.vocab_size), whole_folder(folder) as partial:
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
        write_sealed(partial / _RECORD, record)
    return tokenizer, False


def load_tokenizer(folder: Path) -> Tokenizer:
    """The `tokenizers` object of a saved folder.

    Raises:
        AntError: no tokenizer is there, it is damaged, or lacks the end-of-text token.
    """
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise AntError(f"tokenizer not found: {path}", hint="Train one: ant-hf tokenizer --config RECIPE")
    if (folder / _RECORD).exists():
        _check_files(folder)
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise AntError(f"{path} is no readable tokenizer: {error}") from None
    for token in SPECIAL_TOKENS:
        if tokenizer.token_to_id(token) is None:
            raise AntError(f"{path} has no {token} token", expected=" and ".join(SPECIAL_TOKENS))
    return tokenizer


def _check_files(folder: Path) -> None:
    """Hold a trained tokenizer's files to the hashes of its record."""
    hint = f"Remove {folder} to train it anew."
    record = read_sealed(folder / _RECORD, "tokenizer record", hint)
    # Format 1 named tokenizer.json only.
    files = record.get("files", {"tokenizer.json": record.get("tokenizer_sha256")})
    if not isinstance(files, dict):
        raise AntError(f"tokenizer record {folder / _RECORD} is damaged", seen=files, hint=hint)
    for name, expected in files.items():
        check_file(folder / Path(name).name, expected, "was changed after it was trained", hint)


def token_byte_lengths(tokenizer: Tokenizer) -> list[int]:
    """Bytes of text each token id stands for, shape (vocab_size,); special tokens stand for none.

    In a byte-level vocabulary each character of an entry is one byte.
    """
    special = {token.content for token in tokenizer.get_added_tokens_decoder().values() if token.special}
    lengths = [0] * tokenizer.get_vocab_size()
    for entry, index in tokenizer.get_vocab().items():
        lengths[index] = 0 if entry in special else len(entry)
    return lengths


def _training_texts(
    corpus: Corpus, max_bytes: int, held_out: list[str], show_progress: bool
) -> Iterator[str]:
    """Texts of the training split; the first held-out ones met on the way go to `held_out`."""
    read = held_out_characters = 0
    with tqdm(
        desc="tokenizer: reading", unit="B", unit_scale=True, disable=not show_progress, leave=False
    ) as bar:
        for document in corpus:
            if document.is_validation:
                if held_out_characters < _HELD_OUT_CHARACTERS:
                    held_out.append(document.text)
                    held_out_characters += len(document.text)
                continue
            size = len(document.text.encode())
            read += size
            bar.update(size)
            yield document.text
            if read >= max_bytes:
                return
    if read == 0:
        raise _no_text(corpus)


def _no_text(corpus: Corpus) -> AntError:
    counts = corpus.counts
    if not counts.validation:
        return AntError(
            "the corpus holds no text to train on",
            seen=f"{counts.read:,} documents, {counts.empty:,} of them empty, "
            f"{counts.contaminated:,} shared with evaluation sets",
            hint="Look into what corpus.path (--data) names.",
        )
    return AntError(
        f"all documents of the corpus with text in them, {counts.validation:,}, are held out",
        hint="A txt file is one document; separate several by lines of <|endoftext|>, or pass more files. "
        "With many, lower corpus.validation_fraction.",
    )
