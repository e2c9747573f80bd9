"""The multinomial logit beside scikit-learn's, on the same regressors."""

from __future__ import annotations

import numpy as np
import pytest
from helpers.runs import settings_of, small_run
from sklearn.linear_model import LogisticRegression

from laborllm_dist.baselines.features import CareerFeatures, career_features, categories_of
from laborllm_dist.baselines.logit import fit_logit, fit_with_strength, regressors
from laborllm_dist.careers.splits import SPLITS
from laborllm_dist.store.build import prepare_store


@pytest.fixture(scope="module")
def splits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, CareerFeatures]:
    folder = tmp_path_factory.mktemp("logit")
    store = prepare_store(settings_of(small_run(folder, num_people=120)), lambda line: None)
    categories = categories_of(store.careers("train"))
    return {split: career_features(store.careers(split), categories) for split in SPLITS}


def test_the_fit_is_that_of_scikit_learn(splits: dict[str, CareerFeatures]) -> None:
    train, test = splits["train"], splits["test"]
    frequent = np.argsort(-np.bincount(train.occupation, minlength=train.num_occupations))[:10]
    rows = np.isin(train.occupation, frequent)
    weights = np.where(rows, 1.0 + np.arange(len(rows)) % 3, 0.0)
    ours = fit_with_strength(train, weights, strength=2.0, tolerance=1e-12)
    theirs = LogisticRegression(C=0.5, tol=1e-10, max_iter=5_000)
    theirs.fit(regressors(train)[rows], train.occupation[rows], sample_weight=weights[rows])
    log_p = np.concatenate([part for _, part in ours.distributions(test)])[:, theirs.classes_]
    # The occupations that were not observed, which scikit-learn has no class for, have next to no probability.
    assert np.exp(log_p).sum(axis=1).min() > 0.99
    log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(log_p, theirs.predict_log_proba(regressors(test)), atol=0.02)


def test_the_strength_is_the_one_that_validation_people_like_best(
    splits: dict[str, CareerFeatures], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("laborllm_dist.baselines.logit.STRENGTHS", (100.0, 3.0, 0.03))
    train, validation = splits["train"], splits["validation"]
    weights = np.ones(len(train))
    best = fit_logit(train, weights, validation, lambda line: None)
    likelihoods = {
        each: fit_with_strength(train, weights, each, None, 1e-4).log_likelihood(validation)
        for each in (100.0, 3.0, 0.03)
    }
    assert best.strength == max(likelihoods, key=likelihoods.__getitem__) == 3.0
    for _, part in best.distributions(splits["test"]):
        np.testing.assert_allclose(np.exp(part).sum(axis=1), 1)


def test_regressors_of_an_observation_are_its_own(splits: dict[str, CareerFeatures]) -> None:
    features = splits["train"]
    design = regressors(features).toarray()
    row = int(np.flatnonzero(features.tenure > 0)[0])
    num_dummies = features.num_occupations + 1
    assert design[row, features.previous[row]] == 1
    assert design[row, :num_dummies].sum() == 1
    assert design[row, -2:].tolist() == [features.tenure[row] / 10, features.experience[row] / 10]
    assert design[row, num_dummies:-2].sum() == sum(int(column[row] > 0) for column in features.covariates.values())
