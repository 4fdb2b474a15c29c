"""Trained critics: InfoNCE, a lower bound of I(X;Z), and CLUB, an upper bound if its classifier is right.

InfoNCE (van den Oord, Li and Vinyals 2018, arXiv 1807.03748), for a critic f and B pairs (z_i, x_i):

    I ≥ log B + 1/B Σ_i log( e^f(z_i, x_i) / Σ_j e^f(z_j, x_i) )        at most log B, whatever the truth

CLUB (Cheng et al. 2020, arXiv 2006.12013), with a variational q(x|z) that is trained by maximum likelihood; for
discrete labels it is a classifier, and the mean over labels drawn independently of z is a sum over their frequencies:

    I ≤ E_p(x,z) log q(x|z) − E_p(x) E_p(z) log q(x|z)        if q is close to p(x|z)

Both train small networks with Adam and are evaluated on positions held out, as a critic fits its own training positions
too well for a bound. States are standardised, dimension by dimension, so that one learning rate serves all layers; I
does not change. Networks run in float32 on the CPU.

Shape suffixes: N positions, B positions of a batch, D width of a hidden state, L labels.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from rivals.estimator import Estimator, chunks
from softh_probe.errors import InputError


class Bilinear(nn.Module):
    """The critic f(z, x) = g(z)·e_x of InfoNCE: an encoder of states and an embedding of labels."""

    def __init__(self, width: int, hidden: int, n_labels: int):
        super().__init__()
        self.encoder = _perceptron(width, hidden, hidden)
        self.labels = nn.Embedding(n_labels, hidden)

    def forward(self, z_BD: Tensor, x_B: Tensor) -> Tensor:
        """Score every state with every label [B, B]; the pairs are on the diagonal."""
        scores: Tensor = self.encoder(z_BD) @ self.labels(x_B).T / math.sqrt(self.labels.embedding_dim)
        return scores


@dataclass(frozen=True, kw_only=True)
class Critic(Estimator):
    """A critic that is trained on some positions and evaluated on the others.

    Attributes:
        hidden: units of the hidden layer.
        epochs: passes of training.
        batch: positions of a step.
        learning_rate: Adam's.
        held_out: share of the positions that are held out.
    """

    hidden: int = 256
    epochs: int = 20
    batch: int = 256
    learning_rate: float = 1e-3
    held_out: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.held_out < 1:
            raise InputError(f"held_out: expected a share below 1, got {self.held_out!r}")

    @property
    def passes(self) -> int:
        return self.epochs + 2  # mean and standard deviation first, evaluation last

    @abstractmethod
    def _critic(self, width: int, n_labels: int) -> nn.Module:
        """Make the network, with random weights."""

    @abstractmethod
    def _loss(self, critic: nn.Module, z_BD: Tensor, x_B: Tensor) -> Tensor:
        """Compute what training minimises on a batch."""

    @abstractmethod
    def _information(self, critic: nn.Module, z_ND: Tensor, x_N: Tensor) -> float:
        """Evaluate the bound on the positions held out, in nats."""

    def _estimate(self, states_ND: np.ndarray, labels_N: np.ndarray) -> float:
        n_test = int(len(states_ND) * self.held_out)
        if min(n_test, len(states_ND) - n_test) < self.batch:
            got = f"{len(states_ND) - n_test} and {n_test}"
            raise InputError(
                f"batch: expected {self.batch} positions or more in both parts, got {got}; lower the batch"
            )
        order_N = np.random.default_rng(self.seed).permutation(len(states_ND))
        test, train = order_N[:n_test], order_N[n_test:]
        mean_D, sd_D = _moments(states_ND, train)
        z_ND = torch.from_numpy(states_ND).sub(mean_D).div_(torch.where(sd_D > 0, sd_D, 1.0))
        x_N = torch.from_numpy(labels_N)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            critic = self._critic(states_ND.shape[1], int(labels_N.max()) + 1)
            self._train(critic, z_ND[train], x_N[train])
        with torch.no_grad():
            return self._information(critic, z_ND[test], x_N[test])

    def _train(self, critic: nn.Module, z_ND: Tensor, x_N: Tensor) -> None:
        optimizer = torch.optim.Adam(critic.parameters(), lr=self.learning_rate)
        for _ in range(self.epochs):
            for rows_B in _batches(torch.randperm(len(x_N)), self.batch):
                optimizer.zero_grad()
                self._loss(critic, z_ND[rows_B], x_N[rows_B]).backward()
                optimizer.step()


@dataclass(frozen=True, kw_only=True)
class InfoNce(Critic):
    """InfoNCE, in nats: which of the batch's states belongs to a label? At most log(batch)."""

    @property
    def name(self) -> str:
        return "InfoNCE"

    def _critic(self, width: int, n_labels: int) -> nn.Module:
        return Bilinear(width, self.hidden, n_labels)

    def _loss(self, critic: nn.Module, z_BD: Tensor, x_B: Tensor) -> Tensor:
        return nn.functional.cross_entropy(critic(z_BD, x_B).T, torch.arange(len(x_B)))

    def _information(self, critic: nn.Module, z_ND: Tensor, x_N: Tensor) -> float:
        losses = [
            self._loss(critic, z_ND[rows], x_N[rows]).item() for rows in _batches(torch.arange(len(x_N)), self.batch)
        ]
        return math.log(self.batch) - sum(losses) / len(losses)


@dataclass(frozen=True, kw_only=True)
class Club(Critic):
    """CLUB with a classifier as q(x|z), in nats."""

    @property
    def name(self) -> str:
        return "CLUB"

    def _critic(self, width: int, n_labels: int) -> nn.Module:
        return _perceptron(width, self.hidden, n_labels)

    def _loss(self, critic: nn.Module, z_BD: Tensor, x_B: Tensor) -> Tensor:
        return nn.functional.cross_entropy(critic(z_BD), x_B)

    def _information(self, critic: nn.Module, z_ND: Tensor, x_N: Tensor) -> float:
        log_q_NL = torch.log_softmax(critic(z_ND), dim=1).double()
        frequency_L = torch.bincount(x_N, minlength=log_q_NL.shape[1]).double() / len(x_N)
        of_pairs = log_q_NL.gather(1, x_N.unsqueeze(1)).mean()
        return (of_pairs - (log_q_NL.mean(dim=0) * frequency_L).sum()).item()


def _moments(states_ND: np.ndarray, rows_R: np.ndarray) -> tuple[Tensor, Tensor]:
    """Compute mean and standard deviation of each dimension [D], float32, over the rows."""
    width = states_ND.shape[1]
    sum_D, squares_D = np.zeros(width), np.zeros(width)
    for part in chunks(len(rows_R)):
        part_RD = states_ND[rows_R[part]].astype(np.float64)
        sum_D += part_RD.sum(axis=0)
        squares_D += np.square(part_RD).sum(axis=0)
    mean_D = sum_D / len(rows_R)
    sd_D = np.sqrt(np.maximum(squares_D / len(rows_R) - mean_D**2, 0.0))
    return torch.from_numpy(mean_D).float(), torch.from_numpy(sd_D).float()


def _perceptron(width: int, hidden: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, outputs))


def _batches(rows_N: Tensor, size: int) -> list[Tensor]:
    """Cut rows into whole batches: log B is the bound of every one. A rest of less than a batch is left out."""
    return [rows_N[start : start + size] for start in range(0, len(rows_N) - size + 1, size)]
