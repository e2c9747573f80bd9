"""The multinomial logit beside scikit-learn's, on the same regressors."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.runs import settings_of, small_run
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from laborllm_dist.baselines.embedding import StandardizedStates, moments
from laborllm_dist.baselines.features import CareerFeatures, career_features, categories_of
from laborllm_dist.baselines.logit import CareerRegressors, Sample, fit_logit, fit_with_strength, regressors
from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.store.build import prepare_store


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CareerFeatures]:
    folder = tmp_path_factory.mktemp("logit")
    store = prepare_store(settings_of(small_run(folder, num_people=120)))
    categories = categories_of(store.careers("train"))
    return {split: career_features(store.careers(split), categories) for split in SPLITS}


def every(features: CareerFeatures) -> sparse.csr_matrix:
    return regressors(features, np.arange(len(features)))


def sample_of(features: CareerFeatures, weights: np.ndarray | None = None) -> Sample:
    design = CareerRegressors(features, np.arange(len(features)))
    return Sample(design, features.occupation, np.ones(len(features)) if weights is None else weights)


def test_the_fit_is_that_of_scikit_learn(splits: dict[str, CareerFeatures]) -> None:
    train, test = splits["train"], splits["test"]
    frequent = np.argsort(-np.bincount(train.occupation, minlength=train.num_occupations))[:10]
    rows = np.isin(train.occupation, frequent)
    weights = np.where(rows, 1.0 + np.arange(len(rows)) % 3, 0.0)
    ours = fit_with_strength(sample_of(train, weights), train.num_occupations, strength=2.0, tolerance=1e-13)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=5_000)
    theirs.fit(every(train)[rows], train.occupation[rows], sample_weight=weights[rows])
    assert ours.seen.tolist() == theirs.classes_.tolist()
    log_p = np.concatenate([part for _, part in ours.distributions(sample_of(test).design)])
    # The occupations that were not observed, which scikit-learn has no class for, have their share of the counts.
    counts = np.bincount(train.occupation, weights, minlength=train.num_occupations) + 1
    unseen = np.setdiff1d(np.arange(train.num_occupations), ours.seen)
    np.testing.assert_allclose(np.exp(log_p[:, unseen]), np.tile((counts / counts.sum())[unseen], (len(log_p), 1)))
    rest = 1 - counts[unseen].sum() / counts.sum()
    expected = theirs.predict_log_proba(every(test)) + np.log(rest)
    np.testing.assert_allclose(log_p[:, ours.seen], expected, atol=1e-4)


def test_the_strength_is_the_one_that_validation_people_like_best(splits: dict[str, CareerFeatures]) -> None:
    train, validation = sample_of(splits["train"]), sample_of(splits["validation"])
    num_occupations, strengths = splits["train"].num_occupations, (100.0, 3.0, 0.03)
    best = fit_logit(train, validation, num_occupations, "logit", strengths)
    fits = {strength: fit_with_strength(train, num_occupations, strength) for strength in strengths}
    assert best.strength == max(strengths, key=lambda each: fits[each].log_likelihood(validation)) == 3.0
    assert best.log_likelihood(validation) == pytest.approx(fits[3.0].log_likelihood(validation), rel=2e-4)
    for _, part in best.distributions(sample_of(splits["test"]).design):
        np.testing.assert_allclose(np.exp(part).sum(axis=1), 1)


def test_states_are_standardized_and_fitted_as_by_scikit_learn() -> None:
    draws = np.random.default_rng(0)
    states = (draws.normal(size=(900, 6)) * [0.1, 1, 10, 100, 1, 0] + [5, 0, -30, 1e3, 2, 7]).astype(np.float32)
    weights = 1.0 + np.arange(900) % 3
    scaler = StandardScaler().fit(states.astype(np.float64), sample_weight=weights)
    scaled = scaler.transform(states.astype(np.float64))
    occupation = np.argmax(scaled[:, :3] + draws.normal(size=(900, 3)), axis=1)
    mean, deviation = moments(states, weights)
    np.testing.assert_allclose(mean, scaler.mean_)
    np.testing.assert_allclose(deviation, scaler.scale_, rtol=1e-6)
    design = StandardizedStates(states, mean, deviation)
    ours = fit_with_strength(Sample(design, occupation, weights), 3, strength=4.0, tolerance=1e-13)
    theirs = LogisticRegression(C=0.25, tol=1e-10, max_iter=5_000)
    theirs.fit(scaled, occupation, sample_weight=weights)
    log_p = np.concatenate([part for _, part in ours.distributions(design)])
    np.testing.assert_allclose(log_p, theirs.predict_log_proba(scaled), atol=1e-4)


def test_regressors_of_an_observation_are_its_own(splits: dict[str, CareerFeatures]) -> None:
    features = splits["train"]
    design = every(features).toarray()
    row = int(np.flatnonzero(features.tenure > 0)[0])
    num_dummies = features.num_occupations + 1
    assert design[row, features.previous[row]] == 1
    assert design[row, :num_dummies].sum() == 1
    assert design[row, -2:].tolist() == [features.tenure[row] / 10, features.experience[row] / 10]
    assert design[row, num_dummies:-2].sum() == sum(int(column[row] > 0) for column in features.covariates.values())
