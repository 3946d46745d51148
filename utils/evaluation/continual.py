"""The continual-learning field's summary of a sequence: average accuracy, average forgetting, transfer.

a[t, i] is the accuracy on task i after stage t; row 0 is the untouched base, row t follows the training on task t.
"""

import numpy as np

from utils.errors import UsageError


def sequence_summary(accuracies: np.ndarray) -> dict:
    """Average accuracy, average forgetting, backward and forward transfer of one sequence.

    Parameters
    ----------
    accuracies : numpy.ndarray of shape (T + 1, T)
        a[t, i] in 0 … 1; row 0 is the base before any task, column i the i-th task trained.

    Returns
    -------
    dict
        ``average_accuracy`` (last row), ``average_forgetting`` (mean over all but the last task of its best accuracy
        since it was trained minus its last), ``backward_transfer`` (mean of last minus just after training; negative
        means forgetting), ``forward_transfer`` (mean over all but the first task of its accuracy just before it is
        trained minus the base's).

    Raises
    ------
    UsageError
        If there is no sequence (fewer than two tasks), or the shape is not (T + 1, T).

    References
    ----------
    Lopez-Paz & Ranzato, "Gradient Episodic Memory", NeurIPS 2017 (transfer); Chaudhry et al., "Riemannian Walk",
    ECCV 2018 (forgetting).

    Examples
    --------
    >>> found = sequence_summary(np.array([[0.5, 0.5], [0.9, 0.6], [0.7, 0.8]]))
    >>> {name: round(value, 3) for name, value in found.items()}
    {'average_accuracy': 0.75, 'average_forgetting': 0.2, 'backward_transfer': -0.2, 'forward_transfer': 0.1}
    """
    a = np.asarray(accuracies, dtype=float)
    if a.ndim != 2 or a.shape[0] != a.shape[1] + 1:
        raise UsageError(f"A sequence of T tasks gives a (T + 1, T) matrix of accuracies with the base first, but this "
                         f"one has shape {a.shape}.")
    tasks = a.shape[1]
    if tasks < 2:
        raise UsageError("A sequence needs two tasks or more: after a single one nothing learnt before can be lost.")
    last, before = a[-1], range(tasks - 1)
    return {"average_accuracy": float(last.mean()),
            "average_forgetting": float(np.mean([a[i + 1:-1, i].max() - last[i] for i in before])),
            "backward_transfer": float(np.mean([last[i] - a[i + 1, i] for i in before])),
            "forward_transfer": float(np.mean([a[i, i] - a[0, i] for i in range(1, tasks)]))}
