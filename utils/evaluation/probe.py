"""A head on a frozen body: how much of a task a tuned encoder still holds, whatever head it was last trained with.

The first paper retrains only the classification head before each test of its continual-learning runs, by a recipe that
it does not state. Here the head is a multinomial logistic regression on the body's state of the first token: convex,
so that it has one answer and no learning rate of its own.
"""

from collections.abc import Iterable

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from utils.errors import CourseError

INVERSE_PENALTY = 0.1  # on standardised features: a few hundred rows against a few hundred features need it


@torch.no_grad()
def first_token_states(body: nn.Module, batches: Iterable[dict]) -> tuple[torch.Tensor, torch.Tensor]:
    """The last hidden state of each text's first token, and the labels.

    Parameters
    ----------
    body : nn.Module
        An encoder without a head, in evaluation mode; returns an object with ``last_hidden_state`` (B, T, H).
    batches : iterable of dict
        Each with ``input_ids``, ``attention_mask`` and ``labels`` (B,).

    Returns
    -------
    tuple of torch.Tensor
        float32 (N, H) and int64 (N,), on the CPU.

    Raises
    ------
    CourseError
        If the body is in training mode, where dropout would make the states random.
    """
    if body.training:
        raise CourseError("A head is fitted on a frozen body: call body.eval() first.")
    device, states, labels = next(body.parameters()).device, [], []
    for batch in batches:
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        states.append(body(**inputs).last_hidden_state[:, 0].float().cpu())
        labels.append(batch["labels"])
    return torch.cat(states), torch.cat(labels)


def head_accuracy(train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor]) -> float:
    """Test accuracy of a logistic-regression head fitted on frozen states.

    Parameters
    ----------
    train, test : tuple of torch.Tensor
        States (N, H) and labels (N,), as :func:`first_token_states` returns them.

    Raises
    ------
    CourseError
        If there are no rows, the training labels are all one, or states are not finite.

    Examples
    --------
    >>> x = torch.tensor([[0.0], [0.1], [1.0], [1.1]])
    >>> y = torch.tensor([0, 0, 1, 1])
    >>> head_accuracy((x, y), (x, y))
    1.0
    """
    (x, y), (x_test, y_test) = train, test
    if not (len(y) and len(y_test)):
        raise CourseError(f"A head is fitted on some rows and tested on others, but of the two ({len(y)} and "
                          f"{len(y_test)}) one has no rows; take more.")
    if not (x.isfinite().all() and x_test.isfinite().all()):
        raise CourseError("The body's states hold NaN or infinite values, so no head can be fitted on it; its training "
                          "diverged.")
    if len(y.unique()) < 2:
        raise CourseError(f"A head needs rows of two labels or more, but all {len(y)} have label {int(y[0])}; "
                          "take more rows.")
    head = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_PENALTY, max_iter=1000))
    head.fit(x.numpy(), y.numpy())
    return float((head.predict(x_test.numpy()) == y_test.numpy()).mean())
