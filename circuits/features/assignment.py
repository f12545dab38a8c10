"""The best one-to-one matching of rows with columns (the assignment problem)."""

from __future__ import annotations

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from patching.errors import NotFinite


def best_matching(weights: Float[Tensor, "row column"]) -> tuple[Int[Tensor, " pair"], Int[Tensor, " pair"]]:
    """Rows and columns paired so that the sum of the weights of the pairs is greatest.

    Every row gets a column of its own, or, with more rows than columns, every column a row. The Hungarian method by
    shortest augmenting paths.

    Cost: about ``small² · large`` steps for the smaller and the larger number of rows and columns, vectorised over the
    larger.

    Args:
        weights: of pairing each row with each column.

    Returns:
        The rows in ascending order, and the column of each.

    Raises:
        NotFinite: a weight is NaN or infinite.

    Example:
        >>> rows, columns = best_matching(torch.tensor([[0.9, 0.8], [0.8, 0.1]]))
        >>> rows.tolist(), columns.tolist()
        ([0, 1], [1, 0])
    """
    if not bool(torch.isfinite(weights).all()):
        raise NotFinite("expected finite weights to match by; some are NaN or infinite.")
    flat = weights.detach().double().cpu().numpy()
    if flat.shape[0] <= flat.shape[1]:
        columns = torch.from_numpy(_assign(-flat))
        return torch.arange(flat.shape[0]), columns
    rows = torch.from_numpy(_assign(-flat.T))
    order = rows.argsort()
    return rows[order], order


def _assign(cost: np.ndarray) -> np.ndarray:
    """The column of each row, of least total cost; no more rows than columns."""
    rows, columns = cost.shape
    row_price, column_price = np.zeros(rows), np.zeros(columns)
    owner = np.full(columns, -1)
    for root in range(rows):
        shortest, before = np.full(columns, np.inf), np.full(columns, -1)
        done = np.zeros(columns, dtype=bool)
        row, column, length = root, -1, 0.0
        while True:
            reach = length + cost[row] - row_price[row] - column_price
            closer = ~done & (reach < shortest)
            shortest[closer], before[closer] = reach[closer], row
            column = int(np.where(done, np.inf, shortest).argmin())
            length = shortest[column]
            done[column] = True
            if owner[column] < 0:
                break
            row = int(owner[column])
        chosen = np.flatnonzero(done)
        column_price[chosen] += shortest[chosen] - length
        row_price[root] += length
        taken = chosen[owner[chosen] >= 0]
        row_price[owner[taken]] += length - shortest[taken]
        while column >= 0:  # turn the path around: each row on it takes the column that it was reached from
            row = int(before[column])
            owner[column] = row
            following = np.flatnonzero((owner == row) & (np.arange(columns) != column))
            column = int(following[0]) if len(following) else -1
    result = np.full(rows, -1)
    result[owner[owner >= 0]] = np.flatnonzero(owner >= 0)
    return result
