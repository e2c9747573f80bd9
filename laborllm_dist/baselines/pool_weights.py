"""Weights of pooled corpora, chosen by how well a baseline then predicts the validation people of one survey.

The people of the target survey have weight 1. An observation of another corpus counts as a fraction w of one of the
target: the likelihood of its people is raised to the power w, a power prior. The baseline is fitted with the weights of
a grid, and scored on the validation people of the target alone, who also choose its smoothing or penalty. The search
starts from all others at 0, or all at 1, whichever is better, then changes one weight after the other to the best of
the grid until none changes; of equally good weights it takes the smallest, which costs the least training.

The test people and the validation people of other surveys have no part in it. Every finished fit is in a file, so the
same command resumes.
"""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import rich.box

from laborllm_dist import __version__
from laborllm_dist.baselines.run import NAMES, BaselinePeople, mean_log_likelihood, trained_on
from laborllm_dist.batching.sampler import TrainingSampler
from laborllm_dist.config.baselines import PoolWeightSettings
from laborllm_dist.config.reader import settings_errors
from laborllm_dist.config.run import RunSettings
from laborllm_dist.errors import ForeignFileError, RunError, SettingsError
from laborllm_dist.io.console_tables import Column, FoldingTable
from laborllm_dist.io.files import file_lock, fingerprint_of, write_json
from laborllm_dist.io.json_files import NotJsonError, is_finite_number, read_json_object
from laborllm_dist.io.number_format import format_count, format_decimals, format_perplexity
from laborllm_dist.io.run_directory import read_run
from laborllm_dist.store.pooling import training_pool
from laborllm_dist.store.store import TokenStore, checking_store, open_store
from laborllm_dist.tables.log_domain import perplexity_of

logger = logging.getLogger(__name__)

FORMAT = 1  # of the file of fits: raise it when what is in them changes
GRID = (0.0, *(2.0**power for power in range(-6, 2)))  # weights, ascending
Weights = tuple[float, ...]  # of the other corpora, in the order of data.corpora


@dataclass(frozen=True, slots=True)
class PoolWeights:
    """The chosen weights of the corpora beside a target, and the validation loss of all weights that were tried.

    `losses`: nats per title of the target's validation people; `careers_per_epoch`: of a training with those weights.
    """

    target: str
    baseline: str
    others: tuple[str, ...]
    chosen: Weights
    losses: Mapping[Weights, float]
    careers_per_epoch: Mapping[Weights, int]

    def overrides(self) -> list[str]:
        """Return the settings of a training with the chosen weights."""
        pairs = [(self.target, 1.0), *zip(self.others, self.chosen, strict=True)]
        return [f"data.corpora.{name}.weight={weight:g}" for name, weight in pairs]

    @property
    def shown(self) -> dict[str, Weights]:
        """The weights to compare: the target alone, all people alike, and the chosen ones."""
        alone, alike = (0.0,) * len(self.others), (1.0,) * len(self.others)
        return {"target alone": alone, "all alike": alike, "chosen": self.chosen}


def choose_weights(settings: PoolWeightSettings) -> PoolWeights:
    """Return the weights of the corpora beside the target that fit its validation people best.

    Raises:
        SettingsError: if there is no such corpus, or weights must be whole numbers.
        RunError: if the run has no other corpus, or nobody of the target to train on or to choose by.
        ForeignFileError: if something else has the name of the file of fits.
        AlreadyRunningError: if another process works on baselines of the run.
    """
    run, run_settings, store_folder = read_run(Path(settings.run))
    others = _other_corpora(settings, run_settings)
    store = open_store(store_folder)
    busy = f"another process is at the baselines of {run.path}; wait for it, or end it first"
    with checking_store(store, ("train", "validation")) as check, file_lock(run.path / "baselines.lock", busy=busy):
        check.wait()
        fits = _Fits.opened(settings, run.path, store, run_settings, others)
        chosen = search(fits.loss, len(others))
        return PoolWeights(
            settings.target, NAMES[settings.baseline], others, chosen, dict(fits.losses),
            {weights: fits.careers_per_epoch(weights) for weights in fits.reference_points(chosen)},
        )  # fmt: skip


def search(loss_of: Callable[[Weights], float], num_others: int) -> Weights:
    """Return weights of which no single one can be changed within the grid to lower a loss."""
    starts = [(start,) * num_others for start in (0.0, 1.0)]
    best = min(starts, key=loss_of)
    while True:
        before = best
        for place in range(num_others):
            candidates = [(*best[:place], weight, *best[place + 1 :]) for weight in GRID]
            best = min(candidates, key=loss_of)  # the first of equals
        if best == before:
            return best


@dataclass(frozen=True, slots=True)
class _Fits:
    """The losses of the weights that were tried, in a file beside the run's baselines."""

    file: Path
    identity: str
    people: BaselinePeople
    settings: PoolWeightSettings
    others: tuple[str, ...]
    losses: dict[Weights, float]

    @classmethod
    def opened(
        cls, settings: PoolWeightSettings, run: Path, store: TokenStore, of_run: RunSettings, others: tuple[str, ...]
    ) -> _Fits:
        """Read the losses of an earlier start, if it was about the same people and models."""
        survey = of_run.data.corpora[settings.target].survey
        people = BaselinePeople(store, _weighted(of_run, settings.target, others, None), "validation", run, survey)
        if not len(people.validation):
            raise RunError(
                f"{run} has no validation people of {settings.target}, who would choose the weights; take a larger "
                "split.validation",
                code="nobody-to-choose-weights-by",
            )
        file = run / "baselines" / f"pool_weights.{settings.target}.{settings.baseline}.json"
        identity = fingerprint_of(
            [FORMAT, __version__, settings.target, settings.baseline, store.fingerprint, trained_on(people.settings)]
        )
        return cls(file, identity, people, settings, others, _read_losses(file, identity))

    def loss(self, weights: Weights) -> float:
        """Return nats per title of the target's validation people, by a baseline that is fitted with these weights."""
        if weights not in self.losses:
            people = dataclasses.replace(self.people, settings=self._run_with(weights))
            self.losses[weights] = -mean_log_likelihood(self.settings.baseline, people)
            self._save()
            parts = ", ".join(f"{name} {weight:g}" for name, weight in zip(self.others, weights, strict=True))
            perplexity = format_perplexity(float(perplexity_of(-self.losses[weights])))
            logger.info(f"pool_weights: fit {len(self.losses)}: {parts}: perplexity {perplexity}")
        return self.losses[weights]

    def careers_per_epoch(self, weights: Weights) -> int:
        """Return how many careers an epoch of a training with these weights takes."""
        pool = training_pool(self.people.store, self._run_with(weights))
        return TrainingSampler(pool.rows, pool.weights, global_batch_size=1, seed=0).careers_per_epoch

    def reference_points(self, chosen: Weights) -> list[Weights]:
        """Return the weights whose costs are shown."""
        return list(dict.fromkeys([(0.0,) * len(chosen), (1.0,) * len(chosen), chosen]))

    def _run_with(self, weights: Weights) -> RunSettings:
        return _weighted(self.people.settings, self.settings.target, self.others, weights)

    def _save(self) -> None:
        tried = [{"weights": list(weights), "nats_per_title": loss} for weights, loss in self.losses.items()]
        write_json(self.file, {"identity": self.identity, "corpora": list(self.others), "tried": tried})


def _other_corpora(settings: PoolWeightSettings, run: RunSettings) -> tuple[str, ...]:
    names = list(run.data.corpora)
    if settings.target not in names:
        raise SettingsError(
            f"setting target: expected one of {', '.join(names)}, the corpora of {settings.run}, got "
            f"{settings.target!r}",
            code="unknown-target-corpus",
        )
    if len(names) == 1:
        raise RunError(
            f"{settings.run} has no corpus but {settings.target}, so there are no weights to choose; prepare a run of "
            "pooled corpora (data=pooled)",
            code="nothing-pooled",
        )
    return tuple(name for name in names if name != settings.target)


def _weighted(run: RunSettings, target: str, others: tuple[str, ...], weights: Weights | None) -> RunSettings:
    """Return the settings of a run with other weights; None: all 1."""
    weight_of = {target: 1.0, **dict(zip(others, weights or (1.0,) * len(others), strict=True))}
    corpora = {name: dataclasses.replace(corpus, weight=weight_of[name]) for name, corpus in run.data.corpora.items()}
    with settings_errors():
        return dataclasses.replace(run, data=dataclasses.replace(run.data, corpora=corpora))


def _read_losses(file: Path, identity: str) -> dict[Weights, float]:
    try:
        content = read_json_object(file)
        if not {"identity", "corpora", "tried"} <= content.keys():
            raise NotJsonError("not a file of fits")
        if content["identity"] != identity:
            return {}
        losses = {tuple(fit["weights"]): fit["nats_per_title"] for fit in content["tried"]}
        if not all(map(is_finite_number, [*losses.values(), *itertools.chain(*losses)])):
            raise NotJsonError("a weight or loss is not a number")
        return losses
    except FileNotFoundError:
        return {}
    except (OSError, NotJsonError, KeyError, TypeError, ValueError):
        raise ForeignFileError(
            f"{file} was not written by pool_weights.py, or is damaged, and is not replaced; move it away",
            code="not-pool-weights",
        ) from None


def pool_weights_table(result: PoolWeights) -> FoldingTable:
    """Return a table of the chosen weights beside the target alone and all people alike."""
    columns = (
        Column("weights", "name"),
        *(Column(name, "number") for name in result.others),
        Column("perplexity", "number"),
        Column("nats", "number"),
        Column("careers an epoch", "number"),
    )
    title = f"Validation people of {result.target} by {result.baseline}, {len(result.losses)} fits"
    table = FoldingTable(columns, title=title, box=rich.box.SIMPLE_HEAD)
    for label, weights in result.shown.items():
        loss = result.losses[weights]
        table.add_row(
            label,
            *(f"{weight:g}" for weight in weights),
            format_perplexity(float(perplexity_of(-loss))),
            format_decimals(loss, 4),
            format_count(result.careers_per_epoch[weights]),
        )
    return table
