"""Base scores of a classifier's logits, all higher for in-distribution images."""

import torch


def msp(logits: torch.Tensor) -> torch.Tensor:
    """Maximum softmax probability (Hendrycks and Gimpel, arXiv 1610.02136).

    Args:
        logits: Any floating dtype, shape (N, classes).

    Returns:
        The confidence of the predicted class in [1/classes, 1], float32, shape (N,).
    """
    return torch.softmax(logits.float(), dim=1).amax(dim=1)


def max_logit(logits: torch.Tensor) -> torch.Tensor:
    """Largest logit (Hendrycks et al., arXiv 1911.11132).

    Args:
        logits: Any floating dtype, shape (N, classes).

    Returns:
        The predicted class's logit, float32, shape (N,). It can be negative.
    """
    return logits.float().amax(dim=1)


def energy(logits: torch.Tensor) -> torch.Tensor:
    """Negative free energy at temperature 1, logsumexp (Liu et al., arXiv 2010.03759).

    The paper's energy is its negative; here as everywhere higher is in-distribution.

    Args:
        logits: Any floating dtype, shape (N, classes).

    Returns:
        logsumexp over the classes, float32, shape (N,).
    """
    return torch.logsumexp(logits.float(), dim=1)
