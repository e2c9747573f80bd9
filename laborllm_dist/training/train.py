"""Training from settings to export, in order of time: plan, engine, resume, steps, validation, checkpoints, export."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from laborllm_dist.batching.training_plan import TrainingPlan, plan_training
from laborllm_dist.careers.corpus import check_sources
from laborllm_dist.careers.splits import Split
from laborllm_dist.checkpoint.export import ModelConfig, check_exports, export_adapter, export_checkpoint, finished_step
from laborllm_dist.checkpoint.load import load_checkpoint
from laborllm_dist.checkpoint.manifest import CheckpointManifest, check_checkpoint, read_manifest
from laborllm_dist.checkpoint.save import checkpoint_folder, newest_checkpoint, run_of_checkpoints, save_state
from laborllm_dist.config.run import RunSettings
from laborllm_dist.distributed.context import DistributedContext, exclusive
from laborllm_dist.distributed.zero_engine import make_engine
from laborllm_dist.errors import CheckpointError
from laborllm_dist.io.files import ChecksumCheck
from laborllm_dist.io.run_directory import (
    RunDirectory,
    check_run_folder,
    create_or_resume,
    recorded_store,
    weights_of_run,
)
from laborllm_dist.models.kernels import check_training_kernels
from laborllm_dist.models.loading import (
    check_fit,
    check_packing,
    check_weights,
    longest_career,
    make_model,
    num_parameters,
    weights_identity,
)
from laborllm_dist.models.weight_checks import check_in_place
from laborllm_dist.planning.estimate import budget_of
from laborllm_dist.planning.memory_check import check_memory, flops_of_token
from laborllm_dist.store.build import locate_store, prepare_store
from laborllm_dist.store.naive_perplexity import score_without_model, warning_if_no_better
from laborllm_dist.store.store import TOKENIZER, TokenStore, checking_store, open_store
from laborllm_dist.training.loop import is_done, run_steps
from laborllm_dist.training.model_card import model_card
from laborllm_dist.training.progress import describe_early_stop, describe_end, describe_plan, describe_settings
from laborllm_dist.training.state import INITIAL_STATE, TrainerState, state_from_values
from laborllm_dist.training.step import TrainContext

logger = logging.getLogger(__name__)


def train(settings: RunSettings, ranks: DistributedContext) -> RunDirectory:
    """Train the model of these settings, or resume its run; return the finished run's folder. Collective.

    Raises:
        LaborError: if anything is missing or does not fit; the run's last checkpoint is untouched.
        InterruptedRunError: if SIGTERM or SIGINT came; a checkpoint of the last step is written then.
    """
    logger.info(describe_settings(settings, ranks))
    ranks.run_on_main(lambda: _check_places(settings))
    ranks.run_on_main(lambda: check_training_kernels(settings.compute, ranks.device))
    ranks.run_on_main(lambda: check_weights(settings.model))
    store = open_store(ranks.run_on_main(lambda: _store_folder(settings), Path))
    splits: tuple[Split, ...] = ("train", "validation") if ranks.is_main else ()
    with checking_store(store, splits) as check:
        plan = ranks.run_on_main(lambda: _check_and_plan(settings, store, ranks), TrainingPlan)
        with exclusive(ranks, Path(settings.output_dir) / settings.name):
            run = ranks.run_on_main(lambda: _open_run(settings, store), RunDirectory)
            _train_alone(settings, ranks, (store, check), plan, run)
    return run


def _check_places(settings: RunSettings) -> None:
    """Check the sources and the output folder before any work, so that no foreign file is overwritten."""
    check_sources(settings.data)
    folder = RunDirectory(Path(settings.output_dir) / settings.name, "")
    check_run_folder(folder.path)
    check_exports(folder, unless_written=True)


def _store_folder(settings: RunSettings) -> Path:
    """Return the folder of the token store: the one the run recorded, or a new one."""
    recorded, location = recorded_store(Path(settings.output_dir) / settings.name), locate_store(settings)
    if recorded is not None and recorded.name == location.folder.name:
        return recorded
    return prepare_store(settings, location).folder


def _check_and_plan(settings: RunSettings, store: TokenStore, ranks: DistributedContext) -> TrainingPlan:
    store.careers("test")  # an empty split raises now, not after the training
    return plan_training(store, settings, world_size=ranks.world_size)


def _open_run(settings: RunSettings, store: TokenStore) -> RunDirectory:
    weights = None if settings.model.path is None else weights_identity(settings.model)
    saved = run_of_checkpoints(RunDirectory(Path(settings.output_dir) / settings.name, "").checkpoints)
    return create_or_resume(settings, {"fingerprint": store.fingerprint, "folder": str(store.folder)}, weights, saved)


def _train_alone(
    settings: RunSettings,
    ranks: DistributedContext,
    checked_store: tuple[TokenStore, ChecksumCheck],
    plan: TrainingPlan,
    run: RunDirectory,
) -> None:
    """Resume or start, run the remaining steps, and export."""
    store, check = checked_store
    newest = ranks.run_on_main(lambda: newest_checkpoint(run.checkpoints), tuple[Path, CheckpointManifest] | None)
    state = INITIAL_STATE if newest is None else _state_of(newest[1], run)
    if is_done(plan, state) and ranks.run_on_main(lambda: finished_step(run, settings)) == state.best_step:
        logger.info(f"train: {run.path} is finished ({state.step} steps, best after {state.best_step})")
        ranks.run_on_main(check.wait)
        ranks.run_on_main(lambda: warn_if_no_better(state, store, settings))
        return
    ranks.run_on_main(lambda: check_exports(run))
    if state.best_step != state.step:  # the newest checkpoint is already checked
        state = ranks.run_on_main(lambda: _with_whole_best(state, run.checkpoints), TrainerState)

    budget = budget_of(ranks, settings)  # on every rank: all import the packages of the model at once
    ranks.run_on_main(lambda: check_memory(settings, plan, store.num_ids, budget))
    model = make_model(settings, ranks, num_ids=store.num_ids, num_titles=len(store.vocabulary))
    ranks.run_on_main(check.wait)
    ranks.run_on_main(lambda: check_fit(model.hugging_face, store))
    if settings.zero.stage < 3 and settings.adapter.quantization == "none":
        model.to(ranks.device)  # where DeepSpeed puts it too; on a CPU the forwards of the check take minutes
    device, longest = next(model.parameters()).device, longest_career(store)
    ranks.run_on_main(lambda: check_packing(model.hugging_face, device=device, longest=longest))
    config = model.hugging_face.config
    logger.info(describe_plan(settings, plan, *num_parameters(model)))
    engine = make_engine(model, settings.zero, settings.optimizer, ranks)
    check_in_place(model, ranks)
    if newest is not None:
        load_checkpoint(engine, newest[0], newest[1], updates=state.num_updates)
        logger.info(f"train: resumes after step {state.step} of {plan.num_steps}")
    context = TrainContext(
        settings, plan, engine, run, store.careers("train"), store.careers("validation"),
        flops_of_token(settings, plan, store.num_ids),
    )  # fmt: skip
    state = run_steps(context, state)
    del engine, context
    if state.step < plan.num_steps:
        logger.info(describe_early_stop(state))
    state = ranks.run_on_main(lambda: _with_whole_best(state, run.checkpoints), TrainerState)
    ranks.run_on_main(lambda: _export_best(state, run, config, store, settings))
    logger.info(describe_end(state, run.export))
    ranks.run_on_main(lambda: warn_if_no_better(state, store, settings))


def _state_of(manifest: CheckpointManifest, run: RunDirectory) -> TrainerState:
    if manifest.run != run.fingerprint:
        raise CheckpointError(
            f"step {manifest.step} in {run.checkpoints} belongs to another run; move it away, or give this run another "
            "name (name=...)",
            code="checkpoint-of-another-run",
        )
    return state_from_values(manifest.state)


def _with_whole_best(state: TrainerState, checkpoints: Path) -> TrainerState:
    """Return the state whose best step is that of a whole checkpoint, if any validated one is left, and save it."""
    checked = state
    while checked.best_step is not None:
        try:
            check_checkpoint(checkpoint_folder(checkpoints, checked.best_step))
            break
        except CheckpointError as error:
            if checked == state:
                logger.info(f"train: the best weights, of step {state.best_step}, are lost: {error}")
            checked = checked.without_best()
    if checked != state:
        save_state(checkpoints, checked.step, asdict(checked))
        best = "there is none, until the next validation" if checked.best_step is None else f"step {checked.best_step}"
        logger.info(f"train: best on validation of what is left: {best}")
    return checked


def warn_if_no_better(state: TrainerState, store: TokenStore, settings: RunSettings) -> None:
    """Warn if the best weights predict the validation people's titles worse than a frequency table."""
    if state.best_nats_per_title is None:
        return
    others = score_without_model(store, store.careers("validation"), settings)
    warning = warning_if_no_better(settings.name, "validation", state.best_nats_per_title, others)
    if warning is not None:
        logger.warning(f"{warning}; more steps (training.epochs) or another optimizer.learning_rate may help")


def _export_best(
    state: TrainerState, run: RunDirectory, config: ModelConfig, store: TokenStore, settings: RunSettings
) -> None:
    assert state.best_step is not None  # the last step validates
    folder = checkpoint_folder(run.checkpoints, state.best_step)
    manifest = read_manifest(folder)
    card = model_card(settings, store, state, weights_of_run(run))
    tokenizer, titles = store.folder / TOKENIZER, store.vocabulary.codes
    if settings.adapter.kind == "none":
        export_checkpoint(folder, manifest, config, tokenizer, run.export, card, titles)
    else:
        export_adapter((folder, manifest), settings, config, tokenizer, run, card, titles)
