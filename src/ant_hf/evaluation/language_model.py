"""lm-eval's own Hugging Face model with another way through the forward passes.

Tokenisation, the split into context and continuation, truncation, rolling windows and the token before
an empty context are lm-eval's: a score differs from its own by rounding only. (But a text in windows begins
with one BOS token, where lm-eval puts a second one before that of a tokenizer which adds it.) What is ours is
speed:

- texts that begin alike share what they begin with. They stand in one row as a tree, each token seeing
  what stands before it in its own texts, so a question with four answers costs one question instead of four.
  A row grows while that costs less than another row. Sharing takes attention to all that stands before: no
  row longer than a model's window is shared, and of every set, the rows that ask most of the model are scored
  both ways first;
- batches hold a number of tokens, not of requests, and rows of like length;
- logits are made for scored positions only.

Scores are kept on disk as they come, so that an interrupted evaluation continues.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
import itertools
import json
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from numpy.typing import NDArray
from transformers import PreTrainedConfig, PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.model.encoding import added_ids
from ant_hf.utils.files import write_text
from ant_hf.utils.hardware import keep_freed_memory

Score = tuple[float, bool]
"""Log-likelihood in nats, and whether the continuation is the greedy one."""


@dataclass(frozen=True)
class Scored:
    """A request as token ids."""

    index: int
    tokens: list[int]
    """Context and continuation."""
    start: int
    """Where the continuation begins."""
    shared: int = 0
    """Of the tokens read, how many the request before it in its row reads as well."""

    @property
    def read(self) -> int:
        """Tokens that the model reads; the last one is predicted only."""
        return len(self.tokens) - 1


@dataclass
class Row:
    """Requests that stand in one row as a tree: what neighbours begin with stands there once."""

    requests: list[Scored]

    def __post_init__(self) -> None:
        self.length = sum(request.read - request.shared for request in self.requests)
        self.branches = False
        self._closed = False

    def __len__(self) -> int:
        return self.length

    @property
    def depth(self) -> int:
        """Tokens of the longest request."""
        return max(request.read for request in self.requests)

    def add(self, request: Scored) -> None:
        """Put a request behind the others; it begins like the last one for `request.shared` tokens."""
        self._closed |= request.shared < self.requests[-1].read
        self.branches |= self._closed and request.shared < request.read
        self.length += request.read - request.shared
        self.requests.append(request)


def common_length(first: list[int], second: list[int]) -> int:
    """How many ids two lists begin with alike."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (one, other) in pairs if one != other), min(len(first), len(second)))


@dataclass(frozen=True)
class Layout:
    """A batch as tensors. B rows of T tokens, N scored tokens at P positions; padding stands behind."""

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    ends_BT: torch.Tensor
    """Column behind the last token that sees this one. Tokens stand in the order of a walk through the tree,
    so those that follow a token in a text are the ones between it and this column."""
    kept: int
    """The last columns, whose logits are needed."""
    place_P: torch.Tensor
    """Positions whose logits predict scored tokens, through the kept columns of all rows, each once."""
    place_N: torch.Tensor
    """Which of these predicts the scored token."""
    target_N: torch.Tensor
    request_N: torch.Tensor
    """Which of the batch's requests, counted through its rows; stays on the CPU, where scores are summed."""

    @classmethod
    def of(cls, rows: list[Row], device: torch.device) -> Layout:
        """Lay a batch out, on the CPU: a GPU would be waited for at every question about its tensors."""
        length = max(len(row) for row in rows)
        ids_BT = np.zeros((len(rows), length), dtype=np.int64)
        positions_BT = np.zeros_like(ids_BT)
        # Padding is seen by itself, so that no row of the softmax is empty.
        ends_BT = np.tile(np.arange(1, length + 1), (len(rows), 1))
        scored: tuple[list[int], ...] = ([], [], [], [])
        requests = itertools.count()
        for number, row in enumerate(rows):
            # Columns of the request in hand, by position.
            path: list[int] = []
            filled = 0
            for request in row.requests:
                ends_BT[number, path[request.shared :]] = filled
                added = request.read - request.shared
                path[request.shared :] = range(filled, filled + added)
                ids_BT[number, filled : filled + added] = request.tokens[request.shared : -1]
                positions_BT[number, filled : filled + added] = range(request.shared, request.read)
                filled += added
                targets = request.tokens[request.start :]
                count, index = len(targets), next(requests)
                columns = path[request.start - 1 : request.read]
                for values, more in zip(
                    scored, ([number] * count, columns, targets, [index] * count), strict=True
                ):
                    values += more
            ends_BT[number, path] = filled
        row_N, column_N, target_N, request_N = (np.array(values, dtype=np.int64) for values in scored)
        kept = length - int(column_N.min())
        # A place that several requests share is worked out once.
        place_P, place_N = np.unique(row_N * kept + column_N - (length - kept), return_inverse=True)

        def there(array: NDArray[np.int64]) -> torch.Tensor:
            return torch.from_numpy(array).to(device, non_blocking=True)

        return cls(
            ids_BT=there(ids_BT),
            positions_BT=there(positions_BT),
            ends_BT=there(ends_BT),
            kept=kept,
            place_P=there(place_P),
            place_N=there(place_N),
            target_N=there(target_N),
            request_N=torch.from_numpy(request_N),
        )

    def mask_B1TT(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask: each token sees itself and what stands before it in its own texts."""
        index = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        seen = (index <= index[:, None]) & (index[:, None] < self.ends_BT[:, None, :])
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def request_key(dtype: torch.dtype, context: list[int], continuation: list[int]) -> str:
    """Hash of a request's token ids; lm-eval's results follow from it, the model and its dtype alone."""
    ids = array("q", [len(context), *context, *continuation])
    return hashlib.sha256(str(dtype).encode() + ids.tobytes()).hexdigest()[:24]


class LikelihoodStore:
    """Scores by request, in memory and on disk.

    One JSON line per request, appended after every batch. The first line names the model and the conditions.

    Raises:
        AntError: the file is of another model, or of other conditions.
    """

    def __init__(self, path: Path, conditions: dict[str, Any]) -> None:
        self.path = path
        self._values = _read(path, conditions)
        self.resumed = len(self._values)
        # Rewritten rather than appended to: a kill may have cut the last line. Whole or as it was: another
        # kill must not lose what is kept.
        lines = (_line(key, value) for key, value in self._values.items())
        write_text(path, "".join([json.dumps(conditions) + "\n", *lines]))

    def get(self, key: str) -> Score | None:
        return self._values.get(key)

    def add(self, values: Iterable[tuple[str, Score]]) -> None:
        """Keep a batch, in memory and on disk."""
        new = list(values)
        self._values.update(new)
        with self.path.open("a", encoding="utf-8") as handle:
            handle.writelines(_line(key, value) for key, value in new)

    def remove(self) -> None:
        """Delete the file, once the results are written."""
        self.path.unlink(missing_ok=True)


def _line(key: str, value: Score) -> str:
    return json.dumps([key, value[0], value[1]]) + "\n"


def _read(path: Path, conditions: dict[str, Any]) -> dict[str, Score]:
    if not path.is_file():
        return {}
    hint = "Pass --fresh to start over."
    first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        recorded = json.loads(first)
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict) or set(recorded) != set(conditions):
        raise AntError(f"the scores kept in {path} are damaged", seen=first[:40], hint=hint)
    for name, value in conditions.items():
        if recorded[name] != value:
            raise AntError(
                f"{path} holds an interrupted evaluation with another {name.replace('_', ' ')}",
                seen=recorded[name],
                expected=str(value),
                hint=hint,
            )
    values = {}
    for line in lines:
        try:
            key, nats, greedy = json.loads(line)
        except ValueError:
            # The line that a kill cut short; its batch is scored again.
            continue
        values[str(key)] = (float(nats), bool(greedy))
    return values


# Attention within which a model treats every row alike, in tokens, under the names of many configs.
_WINDOWS = (
    "sliding_window", "sliding_window_size", "attention_window_size", "attention_chunk_size", "window_size",
    "local_attention", "local_attention_window_len",
)  # fmt: skip
_WINDOWED_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}


def unwindowed_length(config: PreTrainedConfig) -> float:
    """The longest row, in tokens, in which every layer attends to all that stands before; may be infinite.

    0 for layers that are not attention over all tokens, whatever the row (linear, recurrent, sparse).
    """
    if not set(getattr(config, "layer_types", None) or ()) <= _WINDOWED_LAYERS:
        return 0
    windows = [getattr(config, name, None) for name in _WINDOWS]
    rope = getattr(config, "rope_parameters", None) or {}
    # Other frequencies for every token, once a row or its neighbour in a batch is longer.
    windows += [
        parameters.get("original_max_position_embeddings")
        for parameters in (rope, *(value for value in rope.values() if isinstance(value, dict)))
        if parameters.get("rope_type") == "longrope"
    ]
    return min([window for window in windows if isinstance(window, int) and window > 0], default=math.inf)


class BatchedLM(HFLM):
    """Scores requests for lm-eval in batches of `batch_size` times the model's context, in tokens.

    Args:
        store: where scores are kept as they come.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, store: LikelihoodStore, batch_size: int
    ) -> None:
        # Buffers of one size, many times: a few percent on a CPU.
        keep_freed_memory()
        # A copy of the tokenizer: it may get one more entry, to pad with.
        own = copy.deepcopy(tokenizer)
        super().__init__(pretrained=model, tokenizer=own, backend="causal", batch_size=batch_size)
        self.store = store
        # Called with the number of requests done since the last call, and of all.
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self._instances: list[Instance] = []
        self.batch_tokens = batch_size * self.max_length
        config = model.config.get_text_config()
        self.window = unwindowed_length(config)
        self._width = getattr(config, "hidden_size", 768)
        # Until the rows of a set show that the model takes no mask of ours.
        self.shares_contexts = True
        prefix = self.prefix_token_id
        self._prefix = None if prefix is None else tokenizer.decode(prefix)
        # A context is encoded once, not once for each of its continuations.
        self._encode = functools.lru_cache(maxsize=4)(
            functools.partial(tokenizer.encode, add_special_tokens=False)
        )
        self._begin = added_ids(tokenizer)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters

    def tok_encode(
        self,
        string: str,
        add_special_tokens: bool | None = None,
        left_truncate_len: int | None = None,
        **_: Any,
    ) -> list[int]:
        """Token ids of a text, with what the tokenizer puts before it, and without what it puts behind.

        As lm-eval's, which would take an end-of-text token behind a context for a part of it, and which
        needs a BOS or EOS token to look for.
        """
        ids = self._encode(string)
        has_prefix = self._prefix is not None and string.startswith(self._prefix)
        if add_special_tokens or (add_special_tokens is None and not has_prefix):
            ids = [*self._begin, *ids]
        return ids[-left_truncate_len:] if left_truncate_len else ids

    def text_ids(self, text: str) -> list[int]:
        """Token ids of a whole text as it is scored, without the BOS token that is put before it."""
        return self.tok_encode(text, add_special_tokens=False)

    def check(self, request: Instance, where: str) -> None:
        """Refuse a request that cannot be scored.

        Raises:
            AntError: names the document by `where`: a text has no token of its own, is longer than the
                model's context, or stands behind nothing and the tokenizer has no token to begin with.
        """
        if request.request_type == "loglikelihood_rolling":
            context, continuation = "", self.text_ids(request.args[0])[:1]
        else:
            context, continuation = request.args[0], self._pair(*request.args)[1]
        if context == "" and self.prefix_token_id is None:
            raise AntError(
                f"{where}: the text needs a token before it, and the tokenizer has none for that",
                seen="neither bos_token nor eos_token",
                hint='Set "bos_token" in tokenizer_config.json, or leave this set out: name the others with '
                "--tasks.",
            )
        if not continuation:
            raise AntError(
                f"{where}: the answer does not have a token of its own",
                seen=request.args[-1],
                expected="a token that begins where the answer begins",
                hint="The tokenizer drops it, or joins it with the end of the prompt. Let answers begin with "
                "a space, for example by target_delimiter in the task file.",
            )
        if len(continuation) > self.max_length:
            raise AntError(
                f"{where}: an answer is longer than the model's context",
                seen=f"{len(continuation):,} tokens",
                expected=f"at most {self.max_length:,}",
                hint="Shorten the answer, or leave this set out: name the others with --tasks.",
            )

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Token ids of both, as lm-eval splits them."""
        if context:
            return self._encode_pair(context, continuation)
        ids = self.text_ids(continuation)
        begin = [self.prefix_token_id]
        return (begin, ids[1:]) if ids[:1] == begin else (begin, ids)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        """Summed log-likelihood of each continuation, nats, and whether it is the greedy one.

        Raises:
            AntError: a score is not finite; names the task and the document.
        """
        self._instances = requests
        return self._loglikelihood_tokens(
            [(request.args, *self._pair(*request.args)) for request in requests]
        )

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts, nats: every token once, in windows of the full context."""
        windows: list[tuple[None, list[int], list[int]]] = []
        self._instances = []
        for request in requests:
            # Without the tokenizer's own BOS token: the first window begins with one.
            ids = self.text_ids(request.args[0])
            for window in get_rolling_token_windows(
                ids, self.prefix_token_id, self.max_length, context_len=1
            ):
                windows.append((None, *make_disjoint_window(window)))
                self._instances.append(request)
        totals = dict.fromkeys((id(request) for request in requests), 0.0)
        for request, (nats, _) in zip(self._instances, self._loglikelihood_tokens(windows), strict=True):
            totals[id(request)] += nats
        return [totals[id(request)] for request in requests]

    def _loglikelihood_tokens(
        self,
        requests: list[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        override_bs: int | None = None,
    ) -> list[Score]:
        keys = [request_key(self.model.dtype, context, continuation) for _, context, continuation in requests]
        scores = [self.store.get(key) for key in keys]
        self.progress(sum(score is not None for score in scores), len(requests))
        pending = [index for index, score in enumerate(scores) if score is None]
        rows = self._rows(requests, pending)
        if not self._sharing_holds(rows):
            self.shares_contexts = False
            rows = self._rows(requests, pending)
        for found in self._scores(self._batches(rows)):
            for index, (nats, _) in found:
                if not math.isfinite(nats):
                    self._refuse(index, nats)
            self.store.add((keys[index], score) for index, score in found)
            for index, score in found:
                scores[index] = score
            self.progress(len(found), len(requests))
        return [score for score in scores if score is not None]

    def _scores(self, batches: Iterable[list[Row]]) -> Iterator[list[tuple[int, Score]]]:
        """Scores of each batch; the CPU lays out the next one while a GPU computes."""
        ahead, begun = int(self.device.type == "cuda"), deque[Callable[[], list[tuple[int, Score]]]]()
        for batch in batches:
            begun.append(self._begin_to_score(batch))
            while len(begun) > ahead:
                yield begun.popleft()()
        yield from (finish() for finish in begun)

    def _refuse(self, index: int, nats: float) -> None:
        item = self._instances[index]
        raise AntError(
            f"the model's log-likelihood is not a number: task {item.task_name}, document {item.doc_id}",
            seen=nats,
            hint="Its weights contain NaN or infinity, or overflow in this dtype. Try --dtype float32.",
        )

    def _rows(self, requests: list[tuple[Any, list[int], list[int]]], pending: list[int]) -> list[Row]:
        """Requests as rows, longest first: a batch too large for the memory fails at once."""
        sequences = []
        for index in pending:
            _, context, continuation = requests[index]
            # lm-eval cuts the context from the left.
            tokens = [*context, *continuation][-(self.max_length + 1) :]
            sequences.append((tokens, len(tokens) - len(continuation), index))
        # Neighbours begin alike, as words do in a dictionary.
        sequences.sort()
        longest = min(self.window, self.max_length) if self.shares_contexts else 0
        rows: list[Row] = []
        last: list[int] = []
        for tokens, start, index in sequences:
            request = Scored(index, tokens, start, common_length(last, tokens[:-1]))
            if rows and self._belongs(request, rows[-1], longest):
                rows[-1].add(request)
            else:
                rows.append(Row([replace(request, shared=0)]))
            last = tokens[:-1]
        return sorted(rows, key=len, reverse=True)

    def _belongs(self, request: Scored, row: Row, longest: float) -> bool:
        """Whether a request costs less in a row than alone."""
        added = request.read - request.shared
        if added == 0 and request.read == row.requests[-1].read:
            # The same tokens, scored elsewhere: MMLU's letters.
            return True
        together = len(row) + added
        return together <= longest and self._cost(together) <= self._cost(len(row)) + self._cost(request.read)

    def _cost(self, length: int) -> float:
        """Cost of a row, in tokens without attention.

        By FLOPs, attention takes as much as the rest in a row of about 6 times the width: a layer spends
        4 * width on each pair of tokens and, in Ant-10M, 22.5 * width^2 on each token. A third of that serves
        better: rows are filled one text at a time, and one that ends early leaves the next more to share.
        """
        return length * (1 + length / (2 * self._width))

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        # Rows that do not branch need no mask of their own, which is quicker and takes less memory. Those
        # beyond a window stay among themselves: of some models, neighbours in a batch would feel it.
        kinds: dict[tuple[bool, bool], list[Row]] = {}
        for row in rows:
            kinds.setdefault((row.branches, len(row) <= self.window), []).append(row)
        for kind in kinds.values():
            while kind:
                size = max(1, self.batch_tokens // len(kind[0]))
                yield kind[:size]
                kind = kind[size:]

    def _score(self, rows: list[Row]) -> list[tuple[int, Score]]:
        """Scores of a batch of rows that all branch, or none, by request."""
        return self._begin_to_score(rows)()

    @torch.no_grad()
    def _begin_to_score(self, rows: list[Row]) -> Callable[[], list[tuple[int, Score]]]:
        """Start on a batch; the function that is returned waits for its scores, as `_score` gives them."""
        layout = Layout.of(rows, self.device)
        inputs: dict[str, Any] = {"input_ids": layout.ids_BT, "use_cache": False}
        if self._keeps_logits:
            inputs["logits_to_keep"] = layout.kept
        # Else no mask: padding stands behind the text, where a causal model does not look.
        if rows[0].branches:
            mask = layout.mask_B1TT(self.model.dtype)
            inputs |= {"position_ids": layout.positions_BT, "attention_mask": mask}
        every = self.model(**inputs).logits[:, -layout.kept :].flatten(0, 1)
        # A copy of what is all there would cost as much as the softmax.
        logits_PV = (every if len(layout.place_P) == len(every) else every[layout.place_P]).float()
        nats_N = logits_PV.log_softmax(dim=1)[layout.place_N, layout.target_N]
        wrong_N = logits_PV.argmax(dim=1)[layout.place_N] != layout.target_N
        indices = [request.index for row in rows for request in row.requests]

        def finish() -> list[tuple[int, Score]]:
            # Summed on the CPU in float64, which Apple's GPUs lack.
            zeros = torch.zeros(len(indices), dtype=torch.float64)
            nats = zeros.index_add(0, layout.request_N, nats_N.cpu().double())
            wrong = zeros.index_add(0, layout.request_N, wrong_N.cpu().double())
            return list(zip(indices, zip(nats.tolist(), (wrong == 0).tolist(), strict=True), strict=True))

        return finish

    def _sharing_holds(self, rows: list[Row]) -> bool:
        """Whether the longest and the deepest of the rows that branch score the same when taken apart.

        They are the set's own, so the model is asked for what it will be asked for: whether it takes our mask
        and positions, and attends to nothing less, and nothing more, than the mask allows.
        """
        shared = [row for row in rows if row.branches]
        # Rounding stays well below; a continuation that sees another one, or less than its context, does not.
        relative, absolute = (1e-5, 1e-4) if self.model.dtype == torch.float32 else (1e-2, 1e-2)
        for row in (max(shared, key=len), max(shared, key=lambda row: row.depth)) if shared else ():
            try:
                together = dict(self._score([row]))
            # What a model makes of arguments that it does not know.
            except Exception:
                return False
            apart = [Row([replace(request, shared=0)]) for request in row.requests]
            for batch in self._batches(sorted(apart, key=len, reverse=True)):
                for index, (nats, _) in self._score(batch):
                    if not math.isclose(together[index][0], nats, rel_tol=relative, abs_tol=absolute):
                        # Numbers that are none are refused where they are scored.
                        return not math.isfinite(nats)
        return True
