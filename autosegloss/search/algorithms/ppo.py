"""PPO2 over a truncated normal, as Auto Seg-Loss searches the shape of a loss.

One step of the search, in the order of the paper:

1. draw `samples` points from the truncated normal around mu (`ask`);
2. train a proxy with each, and take its score as the reward (not here: the study does it);
3. subtract a baseline from the rewards;
4. move mu by `updates` gradient steps up the clipped objective of PPO (`tell`).

Reference: Li et al., Auto Seg-Loss, ICLR 2021, section 4.3 and algorithm 1; Schulman et al., Proximal Policy
Optimization Algorithms, 2017, equation 7.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from autosegloss.proxy.optimizers import without_dynamo
from autosegloss.search.algorithms import policy
from autosegloss.search.algorithms.state import JsonState, check_rewards
from autosegloss.search.seeds import step_rng

# mu stays this far from 0 and 1, so that its logit is finite and can come back within one step of updates. It is a
# two-hundredth of the default std: the distribution does not feel it.
MARGIN = 1e-3


@dataclass(frozen=True)
class State(JsonState):
    """The number of finished steps and the centre of the policy."""

    step: int
    mu: tuple[float, ...]


@dataclass(frozen=True)
class PPO2:
    """Proximal policy optimisation of the centre of a truncated normal.

    Only mu moves; std is fixed. The defaults are those of the published code, except the baseline: the mean, as in the
    paper's text, measured better.

    Args:
        start: Centre of the first step, one number inside (0, 1) per coordinate.
        samples: Points per step.
        seed: Seed of the points; `ask` uses it with the number of the step.
        std: Standard deviation of the policy before truncation.
        clip: Clip range of the probability ratio.
        updates: Gradient updates (Adam) per step.
        learning_rate: Learning rate of Adam, on logit(mu).
        ratio: "coordinate" computes and clips a ratio per coordinate, then sums (published code); "joint" computes and
            clips the ratio of the joint density (paper).
        baseline: "mean" subtracts the mean reward of the step's samples (paper); "mu" subtracts the reward of mu,
            evaluated as an extra point before the samples (published code).
    """

    start: tuple[float, ...]
    samples: int = 32
    seed: int = 0
    std: float = 0.2
    clip: float = 0.2
    updates: int = 60
    learning_rate: float = 0.2
    ratio: Literal["coordinate", "joint"] = "coordinate"
    baseline: Literal["mean", "mu"] = "mean"

    def __post_init__(self) -> None:
        policy.check_start(self.start)

    def init(self) -> State:
        """The state before the first step."""
        return State(step=0, mu=self.start)

    def answer(self, state: State) -> tuple[float, ...]:
        """The centre of the policy, mu."""
        return state.mu

    def spread(self, state: State) -> tuple[float, ...]:
        """The policy's standard deviation, the same for all coordinates and steps."""
        return (self.std,) * len(state.mu)

    def ask(self, state: State) -> list[tuple[float, ...]]:
        """The points to evaluate next: `samples` draws, preceded by mu if it is the baseline."""
        rng = step_rng(self.seed, state.step)
        points: list[list[float]] = policy.sample(state.mu, self.std, self.samples, rng).tolist()
        asked = [tuple(point) for point in points]
        return [state.mu, *asked] if self.baseline == "mu" else asked

    def skip(self, state: State) -> State:
        """The state of the next step before the rewards of this one are known: the same policy, new draws."""
        return State(step=state.step + 1, mu=state.mu)

    def tell(self, state: State, rewards: Sequence[float], asked: State | None = None) -> State:
        """Move mu towards the points with rewards above the baseline.

        Args:
            state: The current state.
            rewards: One finite reward for each point of `ask(asked)`, in its order; higher is better.
            asked: The state that gave the points, to whose density the ratios refer; by default `state` itself.

        Returns:
            The state of the next step.

        Raises:
            InputError: The number of rewards is wrong, or one is not finite.
        """
        asked = state if asked is None else asked
        theta = torch.tensor(self.ask(asked), dtype=torch.float64)
        reward = torch.tensor(list(rewards), dtype=torch.float64)
        check_rewards(rewards, len(theta))
        if self.baseline == "mu":
            theta, advantage = theta[1:], reward[1:] - reward[0]
        else:
            advantage = reward - reward.mean()
        advantage = advantage[:, None]

        old_log_prob = policy.log_prob(theta, torch.tensor(asked.mu, dtype=torch.float64), self.std)
        logit = torch.logit(torch.tensor(state.mu, dtype=torch.float64)).requires_grad_()
        # A fresh Adam: its moments belong to the old objective, and a state of mu alone is easier to trust.
        adam = without_dynamo(torch.optim.Adam)([logit], lr=self.learning_rate)
        for _ in range(self.updates):
            log_ratio = policy.log_prob(theta, torch.sigmoid(logit), self.std) - old_log_prob
            if self.ratio == "joint":
                log_ratio = log_ratio.sum(dim=1, keepdim=True)
            ratio = torch.exp(log_ratio)
            clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
            objective = torch.minimum(ratio * advantage, clipped * advantage).sum(dim=1).mean()
            adam.zero_grad()
            (-objective).backward()  # type: ignore[no-untyped-call]
            adam.step()
        mu: list[float] = torch.sigmoid(logit).clamp(MARGIN, 1 - MARGIN).tolist()
        return State(step=state.step + 1, mu=tuple(mu))
