"""lm-eval's own Hugging Face model with another way through the forward passes.

Tokenisation, the split into context and continuation, truncation, rolling windows and the token before
an empty context are inherited: a score differs from lm-eval's by rounding only. What is ours is speed:

- continuations of one context share one forward pass. They stand behind it in one row, each seeing
  the context and itself, so a question with four answers costs one context instead of four;
- batches hold a number of tokens, not of requests, and rows of like length;
- logits are made for scored positions only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from transformers import PreTrainedModel

from ant_hf.errors import AntError
from ant_hf.evaluation.layout import Layout, Row, Score
from ant_hf.evaluation.likelihoods import LikelihoodStore, request_key


class BatchedLM(HFLM):
    """Scores requests for lm-eval in batches of `batch_size` times the model's context, in tokens.

    Args:
        store: where scores are kept as they come.
        progress: called with the number of requests done since the last call, and of all.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Any,
        store: LikelihoodStore,
        batch_size: int = 8,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> None:
        super().__init__(pretrained=model, tokenizer=tokenizer, backend="causal", batch_size=batch_size)
        self.store = store
        self.progress = progress
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
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
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
        instance = self._instances[index]
        raise AntError(
            f"the model's log-likelihood is not a number: task {instance.task_name}, document "
            f"{instance.doc_id}",
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
                closed.append(Row(context[max(too_long, 0) :], [continuation], [index]))
                continue
            row = rows.setdefault(tuple(context), Row(context, [], []))
            if len(row) + len(continuation) - 1 > self.max_length and row.continuations:
                # Attention grows with the square of a row: windows of a text, which may all begin
                # behind the same token, stay apart.
                closed.append(row)
                row = rows[tuple(context)] = Row(context, [], [])
            row.continuations.append(continuation)
            row.requests.append(index)
        return sorted([*rows.values(), *closed], key=len, reverse=True)

    def _batches(self, rows: list[Row]) -> Iterator[list[Row]]:
        while rows:
            size = max(1, self.batch_tokens // len(rows[0]))
            # Rows that do not branch need no mask of their own, which is quicker.
            kind = rows[0].branches
            batch: list[Row] = []
            rest: list[Row] = []
            for position, row in enumerate(rows):
                if len(batch) == size:
                    rest += rows[position:]
                    break
                (batch if row.branches == kind else rest).append(row)
            yield batch
            rows = rest

    @torch.no_grad()
    def _score(self, rows: list[Row]) -> list[tuple[int, Score]]:
        """Scores of a batch of rows that all branch, or none."""
        layout = Layout.of(rows, self.device)
        if not rows[0].branches:
            # No mask: padding stands behind the text, where a causal model does not look.
            logits_BKV = self.model(input_ids=layout.ids_BT, logits_to_keep=layout.keep).logits
        else:
            logits_BKV = self.model(
                input_ids=layout.ids_BT,
                position_ids=layout.positions_BT,
                attention_mask=layout.mask_B1TT(self.model.dtype),
                logits_to_keep=layout.keep,
            ).logits
        logits_NV = logits_BKV[layout.row_N, layout.column_N - layout.first_kept].float()
        targets_N = layout.target_N
        nats_N = logits_NV.gather(1, targets_N[:, None])[:, 0] - logits_NV.logsumexp(dim=1)
        greedy_N = logits_NV.argmax(dim=1) == targets_N
        return layout.sums(nats_N.cpu().double(), greedy_N.cpu())

    def _can_share_contexts(self) -> bool:
        """Whether this architecture takes our mask and positions: a small case must score the same."""
        ids = [7 * index % self.model.config.vocab_size for index in range(1, 38)]
        context, first, second = ids[:5], ids[5:21], ids[21:]
        try:
            shared = dict(self._score([Row(context, [first, second], [0, 1])]))
        except (TypeError, ValueError, RuntimeError):
            return False
        single = dict(self._score([Row(context, [first], [0]), Row(context, [second], [1])]))
        # Rounding stays well below; a continuation that sees the other one does not.
        tolerance = 1e-5 if self.model.dtype == torch.float32 else 1e-2
        return all(math.isclose(shared[k][0], single[k][0], rel_tol=tolerance) for k in (0, 1))
