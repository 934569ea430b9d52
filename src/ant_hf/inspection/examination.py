"""One model inspected as a whole, or two side by side on the same text.

Which text is read and which tokens are counted is decided here too.
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ant_hf.data.tokens import TRAIN, VALIDATION, PackedTokens, read_manifest
from ant_hf.errors import AntError
from ant_hf.inspection import fragments, measures
from ant_hf.model.architecture import Ledger, parameter_ledger
from ant_hf.model.encoding import decode, first_ids
from ant_hf.model.loading import Subject, check_weights, load_subject, locate, tokenizer_folder
from ant_hf.model.scoring import read_text
from ant_hf.model.texts import ENGLISH
from ant_hf.utils.console import progress_bar, say
from ant_hf.utils.files import file_sha256, is_writable
from ant_hf.utils.names import FINAL, MANIFEST, RUN_RECORD
from ant_hf.utils.stopping import phase

REPORT = "inspection.html"
CANDIDATES = 20
# A few thousand tokens: seconds on a laptop, and more than the residual stream has dimensions.
MAX_CHARACTERS = 20_000
_HELD_OUT_TOKENS = 2_048
# 64 MB of tokens at a time.
_PIECE = 32_000_000


@dataclass(frozen=True)
class Inspection:
    """Everything that is shown of a model."""

    name: str
    facts: dict[str, str]
    """What shapes the model, the same names in the same order for every model."""
    ledger: Ledger
    matrices: list[measures.Matrix]
    heads: list[measures.Head]
    embeddings: measures.Embeddings
    activations: measures.Activations
    text_source: str
    reading: fragments.Reading
    position: int
    """Tokens before the place of the text whose distribution is shown."""
    next: fragments.NextTokens
    """What the model expects at that place."""
    entries: fragments.Vocabulary

    @property
    def before(self) -> str:
        """The end of what comes before the place, readable."""
        nearest = self.reading.fragments[max(0, self.position - 12) : self.position]
        return "".join(fragment.text for fragment in nearest)

    @property
    def uniform_nats(self) -> float:
        """Loss of giving every token the same probability."""
        return math.log(len(self.embeddings.counts))

    @property
    def invalid_utf8_share(self) -> float:
        """Probability on bytes that cannot follow, mean over the text's places."""
        return float(np.mean([e.invalid_utf8_share for e in self.reading.expected if e is not None]))

    @property
    def entropy_bits(self) -> float:
        """Entropy of the next token, mean over the text's places."""
        return float(np.mean([e.entropy_bits for e in self.reading.expected if e is not None]))


@phase("inspecting the model", "Nothing was written. Run the same command again.")
def compare(
    model: str, other: str | None, text: str | None, position: int | None, tokens: Path | None
) -> list[Inspection]:
    """Inspect a model, and another on the same text and at the same place of it.

    Args:
        model, other: folders or Hub ids.
        text: a text or a file; see `choose_text`.
        position: token of the text whose distribution is shown, 0 the first; None: the one after the last.
        tokens: packed tokens of the first model's training, used for the other if its tokenizer is the same.

    Raises:
        AntError: a model cannot be loaded or is not built like a Llama; the text, the tokens or the
            position do not fit.
    """
    subject = load_subject(model, "float32", "cpu")
    # Both before any work: a mistake in the second should not cost the minute that the first takes.
    beside = load_subject(other, "float32", "cpu") if other is not None else None
    found = run_tokens(subject.folder, tokens)
    chosen = choose_text(text, found, subject.tokenizer)
    first = inspect_model(subject, chosen, found, position)
    if beside is None:
        return [first]
    own = run_tokens(beside.folder)
    if own is None and found and fits_tokenizer(found, beside.folder):
        own = found
    return [first, inspect_model(beside, chosen, own, first)]


def inspect_model(
    subject: Subject, text: Text, tokens: Path | None, position: Inspection | int | None
) -> Inspection:
    """Measure a loaded model and read the text with it.

    Args:
        tokens: packed tokens of the training, for the frequencies; else the text's own are taken.
        position: as `compare` takes it, or another model's inspection, whose place in the text is taken.

    Raises:
        AntError: not built like a Llama, not finite, a tokenizer that cannot be read, or no such position.
    """
    model, tokenizer = subject.model, subject.tokenizer
    measures.layers_of(model)
    check_weights(model)
    reading = fragments.read_text(model, tokenizer, text.content, CANDIDATES)
    ids = [fragment.token_id for fragment in reading.fragments]
    with_prefix = first_ids(tokenizer) + ids
    if isinstance(position, Inspection):
        others, place = position.reading.fragments, position.position
        # The token at the byte where the other model's place begins, or the end of the text.
        start = others[place].start if place < len(others) else math.inf
        position = next((i for i, each in enumerate(reading.fragments) if each.end > start), None)
    position = len(ids) if position is None else position
    if not 0 <= position <= len(ids):
        raise AntError(
            "--position is outside the text", seen=position, expected=f"0 to {len(ids)}, its number of tokens"
        )
    if position < len(ids):
        expected = reading.expected[position]
    else:
        expected = fragments.next_tokens(model, tokenizer, with_prefix, CANDIDATES)
    if expected is None:
        raise AntError(
            "nothing comes before position 0, and this tokenizer has no beginning-of-text token",
            hint="Pass a later one: --position 1",
        )
    size, ledger = model.config.vocab_size, parameter_ledger(model.config)
    if tokens:
        counts, counted = count_tokens(tokens, size), "the training tokens"
    else:
        counts, counted = np.bincount(ids, minlength=size), f"the text ({text.source})"
    return Inspection(
        name=subject.name,
        facts=_facts(subject, ledger),
        ledger=ledger,
        matrices=measures.read_matrices(model),
        heads=measures.read_heads(model),
        embeddings=measures.Embeddings(measures.embedding_norms(model), counts, counted, tokens is not None),
        activations=measures.read_activations(model, with_prefix),
        text_source=text.source,
        reading=reading,
        position=position,
        next=expected,
        entries=fragments.vocabulary(tokenizer),
    )


def _facts(subject: Subject, ledger: Ledger) -> dict[str, str]:
    config = subject.model.config
    attention: Any = measures.layers_of(subject.model)[0].self_attn
    size = attention.head_dim
    heads, groups = (projection.out_features // size for projection in (attention.q_proj, attention.k_proj))
    hidden, layers = config.hidden_size, config.num_hidden_layers
    prefix = map(fragments.vocabulary(subject.tokenizer).text, first_ids(subject.tokenizer))
    mlp = getattr(config, "intermediate_size", None)
    return {
        "parameters": f"{ledger.total:,}",
        "in embeddings": f"{ledger.embedding_share:.1%}",
        "hidden size (width)": f"{hidden:,}",
        "layers (depth)": f"{layers:,}",
        "width / depth": f"{hidden / layers:.1f}",
        "query heads x head size": f"{heads} x {size}",
        "key-value heads": f"{groups} (1 for {heads // groups} query heads)",
        "key-value width": f"{groups * size} ({groups * size / hidden:.1%} of the hidden size)",
        "MLP width": f"{mlp:,} ({mlp / hidden:.2f} x the hidden size)" if mlp else "not in the config",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{subject.context_length:,} tokens",
        "embeddings and output tied": "yes" if ledger.tied else "no",
        "read before a text": "".join(prefix) or "nothing",
    }


def side_by_side(columns: Sequence[Mapping[str, Any]]) -> list[tuple[str, list[Any]]]:
    """Rows of a name and each column's value; 0 where it has none of that name."""
    names = dict.fromkeys(itertools.chain(*columns))
    return [(name, [column.get(name, 0) for column in columns]) for name in names]


def default_report(model: str, other: str | None) -> Path:
    """In the run's folder for a run's final model, else in the current one, also if the former is read-only.

    Never inside a model's folder: a release is sealed file by file, and all of a final folder is published.
    """
    name, folder = locate(model)
    file = REPORT if other is None else f"inspection-beside-{locate(other)[0].replace('/', '-')}.html"
    run = folder.resolve().parent
    here = Path(f"{name.replace('/', '-')}-{file}")
    if folder.resolve().name != FINAL or not (run / RUN_RECORD).is_file():
        return here
    if not is_writable(run):
        say("report", f"{run} is read-only, so the report goes into the current folder")
        return here
    return run / file


class Text(NamedTuple):
    """A text and where it is from, in words."""

    content: str
    source: str


def choose_text(given: str | None, tokens: Path | None, tokenizer: Any) -> Text:
    """What the user gave (a file or the text itself), else the run's held-out text, else plain English.

    Args:
        tokens: the run's packed tokens, if they are there.

    Raises:
        AntError: the text is empty, or the file is missing or no UTF-8.
    """
    if given is None:
        if tokens and (held_out := held_out_text(tokens, tokenizer, _HELD_OUT_TOKENS)):
            return Text(held_out, "the beginning of the run's held-out text")
        return Text("\n".join(ENGLISH), "four plain English paragraphs, none from any training set")
    content, source = given, "the text given"
    # Unlike Path's, it takes a long text for no file.
    if os.path.isfile(given):  # noqa: PTH113
        content, source = read_text(Path(given)), Path(given).name
    elif given.split() == [given] and (given.endswith((".txt", ".md", ".json", ".jsonl")) or "/" in given):
        raise AntError(
            f"text file not found: {given}",
            hint="Pass a file that exists, or the text itself, with a space in it: --text 'In the beginning'",
        )
    if not content.strip():
        raise AntError("the text is empty", seen=content[:20], hint="Pass a text or a file with --text.")
    if len(content) > MAX_CHARACTERS:
        return Text(content[:MAX_CHARACTERS], f"the first {MAX_CHARACTERS:,} characters of {source}")
    return Text(content, source)


def run_tokens(folder: Path, given: Path | None = None) -> Path | None:
    """The packed tokens of a model's training: those given, else those beside a run's final folder.

    Raises:
        AntError: the tokens given are missing, damaged, or of another tokenizer.
    """
    if given is None:
        beside = folder.resolve().parent / "tokens"
        return beside if (beside / MANIFEST).is_file() and fits_tokenizer(beside, folder) else None
    if not fits_tokenizer(given, folder):
        raise AntError(
            f"{given} was packed with another tokenizer than that of {folder}",
            hint="Pass the tokens of the model's own run: --tokens FOLDER",
        )
    return given


def fits_tokenizer(tokens: Path, folder: Path) -> bool:
    """Whether packed tokens were made with a model folder's tokenizer."""
    file = tokenizer_folder(folder) / "tokenizer.json"
    packed_with = read_manifest(tokens)["inputs"]["tokenizer_sha256"]
    return file.is_file() and bool(file_sha256(file) == packed_with)


def count_tokens(tokens: Path, vocab_size: int) -> np.ndarray:
    """How often each token occurs in the training split, shape (vocab_size,)."""
    split = PackedTokens(tokens, TRAIN)
    counts = np.zeros(vocab_size, dtype=np.int64)
    with progress_bar("counting tokens") as advance:
        for start in range(0, len(split), _PIECE):
            piece = split.slice(start, start + _PIECE)
            counts += np.bincount(piece, minlength=vocab_size)
            advance(len(piece), len(split))
    return counts


def held_out_text(tokens: Path, tokenizer: Any, max_tokens: int) -> str:
    """The beginning of the validation split as text, documents on lines of their own; may be empty."""
    ids = PackedTokens(tokens, VALIDATION).slice(0, max_tokens).tolist()
    groups = itertools.groupby(ids, key=lambda index: index == tokenizer.eos_token_id)
    return "\n".join(decode(tokenizer, group) for is_end, group in groups if not is_end).strip("\ufffd")
