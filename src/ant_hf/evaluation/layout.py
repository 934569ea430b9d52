"""Contexts with several continuations each, laid out as one batch of tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch

Score = tuple[float, bool]


@dataclass(frozen=True)
class Row:
    """A context and the continuations scored behind it, as token ids."""

    context: list[int]
    continuations: list[list[int]]
    requests: list[int]
    """Index of each continuation's request."""

    def __len__(self) -> int:
        # The last token of a continuation is predicted and never read.
        return len(self.context) + sum(len(ids) - 1 for ids in self.continuations)

    @property
    def branches(self) -> bool:
        """Whether continuations stand side by side; those of one token (MMLU's letters) take no place."""
        return sum(len(ids) > 1 for ids in self.continuations) > 1


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
    request_N: list[int]
    first_kept: int

    @property
    def keep(self) -> int:
        """Number of last positions whose logits are needed."""
        return self.ids_BT.shape[1] - self.first_kept

    @classmethod
    def of(cls, rows: list[Row], device: torch.device) -> Layout:
        """Lay a batch out: context, then every continuation without its last token."""
        length = max(len(row) for row in rows)
        ids, positions, segments = ([[fill] * length for _ in rows] for fill in (0, 0, -1))
        scored: list[tuple[int, int, int, int]] = []
        for number, row in enumerate(rows):
            end = len(row.context)
            ids[number][:end] = row.context
            positions[number][:end] = range(end)
            segments[number][:end] = [0] * end
            for segment, (tokens, request) in enumerate(zip(row.continuations, row.requests, strict=True), 1):
                start, read = end, tokens[:-1]
                end += len(read)
                ids[number][start:end] = read
                positions[number][start:end] = range(len(row.context), len(row.context) + len(read))
                segments[number][start:end] = [segment] * len(read)
                columns = [len(row.context) - 1, *range(start, end)]
                scored += [
                    (number, column, token, request) for column, token in zip(columns, tokens, strict=True)
                ]
        row_n, column_n, target_n, request_n = zip(*scored, strict=True)
        tensors = [torch.tensor(values, device=device) for values in (ids, positions, segments)]
        indices = [torch.tensor(values, device=device) for values in (row_n, column_n, target_n)]
        return cls(
            ids_BT=tensors[0],
            positions_BT=tensors[1],
            segments_BT=tensors[2],
            row_N=indices[0],
            column_N=indices[1],
            target_N=indices[2],
            request_N=list(request_n),
            first_kept=min(column_n),
        )

    def mask_B1TT(self, dtype: torch.dtype) -> torch.Tensor:
        """Additive attention mask: the context and one's own continuation, up to one's own position."""
        query, key = self.segments_BT[:, :, None], self.segments_BT[:, None, :]
        index = torch.arange(self.ids_BT.shape[1], device=self.ids_BT.device)
        seen = ((key == 0) | (key == query)) & (index[:, None] >= index)
        # Padding reads padding, so that no row of the softmax is empty.
        mask = torch.zeros(seen.shape, dtype=dtype, device=seen.device)
        return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]

    def sums(self, nats_N: torch.Tensor, greedy_N: torch.Tensor) -> list[tuple[int, Score]]:
        """Scores by request, in order of the rows."""
        totals: dict[int, Score] = {}
        for request, nats, greedy in zip(self.request_N, nats_N.tolist(), greedy_N.tolist(), strict=True):
            before, all_greedy = totals.get(request, (0.0, True))
            totals[request] = (before + nats, all_greedy and greedy)
        return list(totals.items())
