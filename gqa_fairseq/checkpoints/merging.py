"""Fewer key/value heads from more: each group of neighbours becomes one shared head.

A key head never acts alone: the layer computes W_q^T W_k with each query head that reads it, and
W_o W_v with values. So a head and its readers may be changed together, which pooling (Ainslie et
al. 2023, section 2.1) does not use. Keys and values are the same problem:

    heads    [G, D, X]      what is merged: the rows of W_k, or of W_v, of each head
    readers  [G, R, D, Y]   what reads it: W_q of each query head, or W_o of each, transposed

and what the layer computes is readers[j, r]^T heads[j], [Y, X], for every pair. With biases X and
Y of a projection have one column more, which its input meets with 1.

This holds where positions are added to embeddings. Rotary positions stand between queries and
keys, and no map passes through them.

Legend as in attention.py, and n = G / (new G): the heads of a group.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gqa_fairseq.architecture import ConversionMethod


def merge(
    heads: Tensor, readers: Tensor, num_kv_heads: int, method: ConversionMethod
) -> tuple[Tensor, Tensor]:
    """`num_kv_heads` shared heads, and the readers that go with them.

    Args:
        heads: [G, D, X], float64; neighbours share a head, so group g is heads g * n to g * n + n.
        readers: [G, R, D, Y], float64; R query heads read head j.
        num_kv_heads: the new G, a divisor of the old.
        method: `mean` and `first` of each group as they are (Ainslie et al. 2023, section 2.1), or
            the best shared head: `svd` in its own rows, `svd-product` in what the layer computes.

    Returns:
        heads [num_kv_heads, D, X], and readers as they came, [G, R, D, Y].

    Raises:
        ValueError: `method` merges no heads: `random` has none to start with.
    """
    groups = heads.unflatten(0, (num_kv_heads, -1))  # [new G, n, D, X]
    if method == "mean":
        return groups.mean(dim=1), readers
    if method == "first":
        return groups[:, 0], readers
    if method not in ("svd", "svd-product"):
        raise ValueError(f"method {method!r} merges no heads")
    of_groups = readers.unflatten(0, (num_kv_heads, -1))  # [new G, n, R, D, Y]
    is_weighted = method == "svd-product"
    merged = [_share(*pair, is_weighted) for pair in zip(groups, of_groups, strict=True)]
    return torch.stack([head for head, _ in merged]), torch.cat([read for _, read in merged])


def _share(heads: Tensor, readers: Tensor, is_weighted: bool) -> tuple[Tensor, Tensor]:
    """One head S for a group, and its readers with the maps T_j in them: heads[j] ~ T_j S.

    The stacked heads, [n * D, X], are cut to their D largest singular values, which is the best
    that rank D can do (Eckart and Young 1936). With weights each head is first multiplied by the
    root of M_j = sum over r of readers[j, r] readers[j, r]^T, because the error in what the layer
    computes is sum over r of |readers[j, r]^T E|^2 = |root(M_j) E|^2.

    With readers of head j = P L Q^T (singular values L), root(M_j) = P L P^T. T_j goes back through
    its inverse into the readers, where the two L cancel: T_j^T readers = U_j^T P Q^T. Nothing is
    divided by a singular value, so readers that are zero in some direction are no special case.

    Args and returns as `merge`, for one group: [n, D, X], [n, R, D, Y] -> [D, X], [n, R, D, Y].
    """
    n, D, _ = heads.shape
    R = readers.shape[1]
    columns = readers.transpose(1, 2).flatten(2)  # [n, D, R * Y]
    if is_weighted:
        P, L, Qt = torch.linalg.svd(columns, full_matrices=False)
        heads = P @ (L[:, :, None] * (P.mT @ heads))
        columns = P @ Qt
    U, singular_values, Vt = torch.linalg.svd(heads.flatten(0, 1), full_matrices=False)
    rank = min(D, len(singular_values))  # fewer where the model is narrower than a head
    U_of_heads = U[:, :rank].unflatten(0, (n, D))  # [n, D, rank]
    shared = heads.new_zeros(D, heads.shape[2])
    shared[:rank] = singular_values[:rank, None] * Vt[:rank]
    mapped = columns.new_zeros(columns.shape)
    mapped[:, :rank] = U_of_heads.mT @ columns
    return _balance(shared, mapped.unflatten(2, (R, -1)).transpose(1, 2))


def _balance(shared: Tensor, readers: Tensor) -> tuple[Tensor, Tensor]:
    """The same products, with each row of the head as long as the readers' rows that meet it.

    How a direction's size is divided between a head and its readers is free, and training on
    needs both of a size: Adam moves every weight by the same step, so rows of equal norm turn
    equally fast. The readers' norm is the root mean square over all that read the head.
    """
    of_shared = shared.norm(dim=1)  # [D]
    of_readers = readers.square().sum(dim=3).mean(dim=(0, 1)).sqrt()
    scale = (of_readers / of_shared).sqrt()
    # A direction that is zero on one side computes nothing, and has no balance.
    scale = torch.where((of_readers > 0) & (of_shared > 0), scale, 1.0)
    return scale[:, None] * shared, readers / scale[:, None]
