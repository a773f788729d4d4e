from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, truncnorm

from autosegloss.search.algorithms import policy

UNIT = st.floats(0, 1)


@given(
    theta=st.lists(UNIT, min_size=3, max_size=3),
    mu=st.lists(st.floats(-6, 7), min_size=3, max_size=3),
    std=st.floats(0.05, 3),
)
def test_log_prob_is_that_of_scipy_even_far_out(theta: list[float], mu: list[float], std: float) -> None:
    ours = policy.log_prob(torch.tensor(theta, dtype=torch.float64), torch.tensor(mu, dtype=torch.float64), std)
    centre = np.array(mu)
    theirs = truncnorm.logpdf(theta, (0 - centre) / std, (1 - centre) / std, loc=centre, scale=std)
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-9, atol=1e-9)


def test_log_prob_is_finite_where_the_difference_of_tails_is_not() -> None:
    mu = torch.tensor([-4.0, 5.0], dtype=torch.float64, requires_grad=True)
    value = policy.log_prob(torch.tensor([0.5, 0.5], dtype=torch.float64), mu, 0.1)
    assert value.isfinite().all()
    (gradient,) = torch.autograd.grad(value.sum(), mu)
    assert gradient.isfinite().all()


@given(mu=st.lists(st.floats(0.001, 0.999), min_size=2, max_size=2), std=st.floats(0.05, 1))
def test_gradient_to_mu_is_right(mu: list[float], std: float) -> None:
    theta = torch.tensor([[0.1, 0.9], [0.7, 0.3]], dtype=torch.float64)
    centre = torch.tensor(mu, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda m: policy.log_prob(theta, m, std), (centre,))


def test_samples_have_the_distribution() -> None:
    mu, std = (0.05, 0.5, 0.999), 0.2
    points = policy.sample(mu, std, 4000, np.random.default_rng(0))
    assert points.shape == (4000, 3)
    assert points.min() >= 0
    assert points.max() <= 1
    for column, centre in zip(points.T, mu, strict=True):
        expected = truncnorm((0 - centre) / std, (1 - centre) / std, loc=centre, scale=std)
        assert kstest(column, expected.cdf).pvalue > 1e-3


def test_the_first_samples_do_not_depend_on_how_many_follow() -> None:
    few, many = (policy.sample((0.3, 0.6), 0.2, n, np.random.default_rng(5)) for n in (3, 8))
    np.testing.assert_array_equal(few, many[:3])


@pytest.mark.parametrize("mu", [0.0, 1.0])
def test_a_centre_on_the_bound_is_sampled_inside(mu: float) -> None:
    points = policy.sample((mu,), 0.01, 100, np.random.default_rng(0))
    assert ((points >= 0) & (points <= 1)).all()
