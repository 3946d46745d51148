"""Accuracy, causal language-model loss and pseudo-loss: models and texts in, tidy tables out."""

from utils.evaluation.language import text_loss
from utils.evaluation.pseudo import pseudo_loss

__all__ = ["pseudo_loss", "text_loss"]
