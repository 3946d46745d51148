"""The continual-learning field's summary of a sequence, and what noise alone would make of its average forgetting.

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


def null_forgetting(accuracy: float | np.ndarray, *, rows: int, stages: int, draws: int = 4000,
                    seed: int = 0) -> np.ndarray:
    """Average forgetting of sequences that forget nothing: what test rows alone make of a maximum over stages.

    A task keeps its accuracy from its own stage on; what is seen of it at each stage is the share right among `rows`
    test rows drawn afresh. Real stages share their test rows, whose luck cancels in part, so that this is rather more
    noise than theirs: what lies above it was forgotten, what lies below may have been.

    Parameters
    ----------
    accuracy : float or array of shape (stages,)
        True accuracy of each task in 0 … 1, in the order of the sequence, or one for all.
    rows : int
        Test rows behind each accuracy.
    stages : int
        Tasks of the sequence, one stage each.
    draws : int
        Sequences.
    seed : int
        Equal seeds give equal draws.

    Returns
    -------
    numpy.ndarray of shape (draws,)
        ``average_forgetting`` of :func:`sequence_summary`, one value per sequence.

    Raises
    ------
    UsageError
        If there are fewer than two stages or no test row.

    Examples
    --------
    >>> float(null_forgetting(1.0, rows=200, stages=6).max())  # always right: nothing varies
    0.0
    """
    if stages < 2 or rows < 1:
        raise UsageError(f"Expected two stages or more and a test row or more, got {stages} and {rows}.")
    draw = np.random.default_rng(seed)
    seen = draw.binomial(rows, np.broadcast_to(accuracy, (stages,)), size=(draws, stages, stages)) / rows
    trained = np.tri(stages, dtype=bool)[:-1, :-1]  # before the last stage: from its own stage on, the diagonal
    best = np.where(trained, seen[:, :-1, :-1], -np.inf).max(axis=1)
    return (best - seen[:, -1, :-1]).mean(axis=1)
