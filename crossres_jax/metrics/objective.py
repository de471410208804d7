"""How far apart the images of one person are, by how far apart those of two are."""

import numpy as np
from numpy.typing import ArrayLike


def reid_objective(
    squared_distances: ArrayLike, query_pids: ArrayLike, gallery_pids: ArrayLike
) -> float:
    """O = D_sim / D_dif, Eq. (2) of FFSR + RIFE (Mao et al., IJCAI 2019).

    D_sim and D_dif are the mean squared distances of pairs of images of the same person
    and of two; the equation has sums, whose ratio depends on the number of persons too.
    With queries at a resolution r1 and a gallery at r2 it is O(r1, r2): the smaller,
    the better persons are told apart.

    Args:
      squared_distances: (Q, G) float, not negative.
      query_pids: (Q,) int.
      gallery_pids: (G,) int.

    Returns:
      O, a plain float.

    Raises:
      ValueError: if the shapes do not fit, or there are no pairs of one of the kinds.
    """
    distances = np.asarray(squared_distances, np.float64)
    same = np.asarray(query_pids)[:, None] == np.asarray(gallery_pids)[None]
    if distances.shape != same.shape:
        raise ValueError(
            f"expected distances of shape {same.shape}, found {distances.shape}."
        )
    if same.all() or not same.any():
        raise ValueError(
            "expected pairs of the same and of different persons, found one kind alone."
        )
    return float(distances[same].mean() / distances[~same].mean())
