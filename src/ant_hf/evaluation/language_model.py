"""lm-eval's own Hugging Face model with another way through the forward passes.

Tokenisation, the split into context and continuation, truncation, rolling windows and the token before
an empty context are inherited: a score differs from lm-eval's by rounding only. What is ours is speed:

- continuations of one context share one forward pass. They stand behind it in one row, each seeing
  the context and itself, so a question with four answers costs one context instead of four;
- batches hold a number of tokens, not of requests, and rows of like length;
- logits are made for scored positions only.

Scores are kept on disk as they come, so that an interrupted evaluation goes on.
"""

from __future__ import annotations

import hashlib
import json
import math
from array import array
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.utils.files import write_text

Score = tuple[float, bool]
"""Log-likelihood in nats, and whether the continuation is the greedy one."""


@dataclass(frozen=True)
class Row:
    """A context and the continuations scored behind it, as token ids."""

    context: list[int]
    continuations: dict[int, list[int]]
    """By index of the request."""

    def __len__(self) -> int:
        # The last token of a continuation is predicted and never read.
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations.values())

    @property
    def branches(self) -> bool:
        """Whether continuations stand side by side; those of one token (MMLU's letters) take no place."""
        return sum(len(ids) > 1 for ids in self.continuations.values()) > 1


@dataclass(frozen=True)
class Layout:
    """A batch as tensors. B rows of T tokens, N scored tokens; padding stands behind."""

    ids_BT: torch.Tensor
    positions_BT: torch.Tensor
    segments_BT: torch.Tensor
    """0 for the context, j for the j-th continuation, -1 for padding."""
    row_N: torch.Tensor
    column_N: torch.Tensor
    """Position whose logits predict the scored token."""
    target_N: torch.Tensor
    request_N: torch.Tensor

    @classmethod
    def of(cls, rows: list[Row], device: torch.device) -> Layout:
        """Lay a batch out: context, then every continuation without its last token."""
        length = max(len(row) for row in rows)
        cells: list[list[tuple[int, int, int]]] = []
        scored: list[tuple[int, int, int, int]] = []
        for number, row in enumerate(rows):
            start = len(row.context)
            own = [(token, position, 0) for position, token in enumerate(row.context)]
            for segment, (request, tokens) in enumerate(row.continuations.items(), 1):
                places = [start - 1, *range(len(own), len(own) + len(tokens) - 1)]
                scored += [(number, *pair, request) for pair in zip(places, tokens, strict=True)]
                own += [(token, position, segment) for position, token in enumerate(tokens[:-1], start)]
            cells.append(own + [(0, 0, -1)] * (length - len(own)))
        columns = torch.tensor(cells, device=device).unbind(2)
        return cls(*columns, *torch.tensor(scored, device=device).unbind(1))

    def mask_B1TT(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask: the context and one's own continuation, up to one's own position."""
        query, key = self.segments_BT[:, :, None], self.segments_BT[:, None, :]
        index = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        seen = ((key == 0) | (key == query)) & (index[:, None] >= index)
        # Padding reads padding, so that no row of the softmax is empty.
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def request_key(context: list[int], continuation: list[int]) -> str:
    """Hash of a request's token ids; lm-eval's results follow from it and the model alone."""
    ids = array("q", [len(context), *context, *continuation])
    return hashlib.sha256(ids.tobytes()).hexdigest()[:24]


class LikelihoodStore:
    """Scores by request, in memory and on disk.

    One JSON line a request, appended after every batch. The first line names the model and the conditions.

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
    hint = f"Pass --fresh to start over, or remove {path}."
    first, *lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    try:
        recorded = json.loads(first)
    except ValueError:
        recorded = None
    if not isinstance(recorded, dict) or set(recorded) != set(conditions):
        raise AntError(f"{path} is damaged", seen=first[:40], hint=hint)
    for name, value in conditions.items():
        if recorded[name] != value:
            raise AntError(
                f"an interrupted evaluation here had another {name.replace('_', ' ')}",
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


class BatchedLM(HFLM):
    """Scores requests for lm-eval in batches of `batch_size` times the model's context, in tokens.

    Args:
        store: where scores are kept as they come.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: Any, store: LikelihoodStore, batch_size: int
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.store = store
        # Called with the number of requests done since the last call, and of all.
        self.progress: Callable[[int, int], None] = lambda done, total: None
        self._instances: list[Instance] = []
        self.batch_tokens = batch_size * self.max_length
        self.shares_contexts = self._can_share_contexts()

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[Score]:
        """Summed log-likelihood of each continuation, nats, and whether it is the greedy one.

        Raises:
            AntError: a score is not finite; names the task and the document.
        """
        self._instances = requests
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Log-likelihood of whole texts, nats: every token once, in windows of the full context."""
        windows: list[tuple[None, list[int], list[int]]] = []
        self._instances = []
        for request in requests:
            ids = self.tok_encode(request.args[0])
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
        keys = [request_key(context, continuation) for _, context, continuation in requests]
        scores = [self.store.get(key) for key in keys]
        self.progress(sum(score is not None for score in scores), len(requests))
        pending = [index for index, score in enumerate(scores) if score is None]
        for batch in self._batches(self._rows(requests, pending)):
            found = self._score(batch)
            for index, (nats, _) in found:
                if not math.isfinite(nats):
                    self._refuse(index, nats)
            self.store.add((keys[index], score) for index, score in found)
            for index, score in found:
                scores[index] = score
            self.progress(len(found), len(requests))
        return [score for score in scores if score is not None]

    def _refuse(self, index: int, nats: float) -> None:
        item = self._instances[index]
        raise AntError(
            f"the model's log-likelihood is not a number: task {item.task_name}, document {item.doc_id}",
            seen=nats,
            hint="Its weights hold NaN or infinity, or overflow in this dtype; try --dtype float32.",
        )

    def _rows(self, requests: list[tuple[Any, list[int], list[int]]], pending: list[int]) -> list[Row]:
        """Rows of one context each, longest first: a batch too large for the memory fails at once."""
        rows: dict[tuple[int, ...], Row] = {}
        closed: list[Row] = []
        for index in pending:
            _, context, continuation = requests[index]
            too_long = len(context) + len(continuation) - (self.max_length + 1)
            if too_long > 0 or not self.shares_contexts:
                # lm-eval cuts the context from the left, by another length for each continuation.
                closed.append(Row(context[max(too_long, 0) :], {index: continuation}))
                continue
            row = rows.setdefault(tuple(context), Row(context, {}))
            if len(row) + len(continuation) - 1 > self.max_length and row.continuations:
                # Attention grows with the square of a row: windows of a text, which may all begin
                # behind the same token, stay apart.
                closed.append(row)
                row = rows[tuple(context)] = Row(context, {})
            row.continuations[index] = continuation
        return sorted([*rows.values(), *closed], key=len, reverse=True)

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        # Rows that do not branch need no mask of their own, which is quicker and takes less memory.
        for branches in (True, False):
            kind = [row for row in rows if row.branches == branches]
            while kind:
                size = max(1, self.batch_tokens // len(kind[0]))
                yield kind[:size]
                kind = kind[size:]

    @torch.no_grad()
    def _score(self, rows: list[Row]) -> list[tuple[int, Score]]:
        """Scores of a batch of rows that all branch, or none, by request."""
        layout = Layout.of(rows, self.device)
        first_kept = int(layout.column_N.min())
        inputs = {"input_ids": layout.ids_BT, "logits_to_keep": layout.ids_BT.shape[1] - first_kept}
        # Else no mask: padding stands behind the text, where a causal model does not look.
        if rows[0].branches:
            mask = layout.mask_B1TT(self.model.dtype)
            inputs |= {"position_ids": layout.positions_BT, "attention_mask": mask}
        logits_BKV = self.model(**inputs).logits
        logits_NV = logits_BKV[layout.row_N, layout.column_N - first_kept].float()
        nats_N = logits_NV.gather(1, layout.target_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)
        greedy_N = logits_NV.argmax(dim=1) == layout.target_N
        columns = (layout.request_N, nats_N.cpu().double(), greedy_N)
        totals: dict[int, Score] = {}
        for request, nats, greedy in zip(*(column.tolist() for column in columns), strict=True):
            before, all_greedy = totals.get(request, (0.0, True))
            totals[request] = (before + nats, all_greedy and greedy)
        return list(totals.items())

    def _can_share_contexts(self) -> bool:
        """Whether this architecture takes our mask and positions: a small case must score the same."""
        ids = [7 * index % self.model.config.vocab_size for index in range(1, 38)]
        context, first, second = ids[:5], ids[5:21], ids[21:]
        try:
            shared = dict(self._score([Row(context, {0: first, 1: second})]))
        except (TypeError, ValueError, RuntimeError):
            return False
        single = dict(self._score([Row(context, {0: first}), Row(context, {1: second})]))
        # Rounding stays well below; a continuation that sees the other one does not.
        tolerance = 1e-5 if self.model.dtype == torch.float32 else 1e-2
        return all(math.isclose(shared[k][0], single[k][0], rel_tol=tolerance) for k in (0, 1))
