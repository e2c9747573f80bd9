"""The runs of a sweep as a value: which they are, what makes each, and what it needs."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from pathlib import Path

import pytest
import torch
import transformers
import yaml
from helpers.errors import raises
from helpers.processes import PROJECT
from helpers.sweeps import compose_run, opened_sweep, sweep_settings
from rich.console import Console

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.reader import read_settings, settings_to_values
from laborllm_dist.config.sweep import RunsSettings, SweepSettings
from laborllm_dist.models.dims import shape_of
from laborllm_dist.planning.simulator import simulate_run
from laborllm_dist.planning.workload import find_held_out
from laborllm_dist.store.build import prepare_store
from laborllm_dist.sweeps.runs import (
    first_of_mixes,
    list_runs,
    models_table,
    num_non_embedding,
    plan_runs,
    plan_table,
    point_of,
    queue_line,
)

CONF = PROJECT / "conf"
SIZES = sorted(path.stem for path in (CONF / "model").glob("scratch_*.yaml"))
SWEEPS = sorted(path.stem for path in (CONF / "sweep").glob("*.yaml"))


def settings_of_sweep(*overrides: str) -> SweepSettings:
    return compose_settings(SweepSettings, "sweep", list(overrides))


def printed(table: object) -> list[str]:
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(table)
    return capture.get().splitlines()


@pytest.mark.parametrize("size", SIZES)
def test_sizes_follow_one_rule_and_their_name_is_their_count(size: str) -> None:
    """Depth grows as width to the 2/3, as from the tiny model to Llama-2 7B; transformers counts the weights."""
    model = compose_run([f"model={size}"]).model
    llama = model.llama
    assert llama is not None and model.name == size
    width = llama.hidden_size
    assert llama.num_layers == round(width ** (2 / 3) / 8)
    assert llama.intermediate_size == 8 * round(width * 11008 / 4096 / 8)  # as Llama-2 7B's
    assert width // llama.num_heads == 2 ** math.floor(math.log2(2 * math.sqrt(width)))
    with torch.device("meta"):
        config = transformers.LlamaConfig(
            vocab_size=1_000, hidden_size=width, intermediate_size=llama.intermediate_size,
            num_hidden_layers=llama.num_layers, num_attention_heads=llama.num_heads,
            num_key_value_heads=llama.num_key_value_heads, tie_word_embeddings=True,
        )  # fmt: skip
        counted = transformers.LlamaForCausalLM(config).num_parameters() - 1_000 * width
    assert num_non_embedding(shape_of(model, num_ids=1_000)) == counted
    digits, unit = re.fullmatch(r"scratch_(\d+)([kmb])", size).groups()  # type: ignore[union-attr]
    assert counted == pytest.approx(int(digits) * {"k": 1e3, "m": 1e6, "b": 1e9}[unit], rel=0.12)


def test_sizes_reach_from_3_thousand_to_13_billion_and_one_of_them_is_llama_2_7b() -> None:
    assert {"scratch_3k", "scratch_50k", "scratch_13b"} <= set(SIZES)
    llama = compose_run(["model=scratch_7b"]).model.llama
    assert llama is not None
    assert (llama.hidden_size, llama.intermediate_size, llama.num_layers, llama.num_heads) == (4096, 11008, 32, 32)


@pytest.mark.parametrize("sweep", SWEEPS)
def test_every_sweep_composes_and_says_how_it_is_run(sweep: str) -> None:
    settings = settings_of_sweep(f"+sweep={sweep}")
    assert settings.name == sweep
    assert read_settings(SweepSettings, settings_to_values(settings)) == settings
    lines = (CONF / "sweep" / f"{sweep}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python launch/sweep.py +sweep={sweep}")
    assert "?" in lines[2], "the third line is the sweep's question"
    planned = plan_runs(list_runs(settings, compose_run), {})
    assert len(planned) == len({each.run.name for each in planned})


def test_the_synthetic_sweep_is_four_sizes_by_four_shares_and_a_second_seed() -> None:
    runs = list_runs(settings_of_sweep("+sweep=synthetic_law"), compose_run)
    sizes, shares = ("scratch_3k", "scratch_7k", "scratch_19k", "scratch_50k"), (0.15, 0.3, 0.55, 1.0)
    grid = [(size, share, 1) for size, share in itertools.product(sizes, shares)]
    assert [(run.model, run.share, run.seed) for run in runs] == [*grid, ("scratch_3k", 0.15, 2)]


def test_the_arguments_of_a_run_make_its_settings(tmp_path: Path) -> None:
    more = {"corner": RunsSettings(model="tiny", mix="half", share=0.5, seeds=(7,))}
    mixes = {"half": ("data.corpora.synthetic.fraction=0.5",), "whole": ()}
    runs = list_runs(sweep_settings(tmp_path, mixes=mixes, more_runs=more, num_ranks=2), compose_run)
    assert [(run.mix, run.share, run.seed) for run in runs] == [
        ("half", 1.0, 1), ("half", 1.0, 2), ("half", 0.5, 7), ("whole", 1.0, 1), ("whole", 1.0, 2),
    ]  # fmt: skip
    assert [compose_run(run.overrides) for run in runs] == [run.settings for run in runs]
    fractions = [run.settings.data.corpora["synthetic"].fraction for run in runs]
    assert fractions == [0.5, 0.5, 0.25, 1.0, 1.0]
    assert {mix: run.share for mix, run in first_of_mixes(runs).items()} == {"half": 1.0, "whole": 1.0}


def test_a_run_that_two_sweeps_share_has_one_name(tmp_path: Path) -> None:
    """A quarter of half of the people is an eighth of them, whatever the sweep calls it."""
    half = {"half": ("data.corpora.synthetic.fraction=0.5",)}
    one = list_runs(sweep_settings(tmp_path, mixes=half, shares=(0.25,)), compose_run)
    other = list_runs(sweep_settings(tmp_path, name="other", shares=(0.125, 0.25)), compose_run)
    assert [run.name for run in one] == [run.name for run in other[:2]]
    assert len({run.name for run in other}) == 4
    longer = list_runs(sweep_settings(tmp_path, shares=(0.125,), models={"tiny": ("training.epochs=9",)}), compose_run)
    assert not {run.name for run in longer} & {run.name for run in other}


def test_all_shares_of_a_mix_have_one_token_store(tmp_path: Path) -> None:
    sweep = opened_sweep(tmp_path, shares=(0.25, 1.0))
    assert list(sweep.locations) == ["market"]
    store = prepare_store(sweep.runs[0].settings)
    assert sweep.store_of(sweep.runs[-1]) is not None
    people = [
        {str(name) for name in store.careers("train").table["person"].take(each.plan.order.rows).to_pylist()}
        for each in plan_runs(sweep.runs, sweep.locations)
    ]
    assert people[0] < people[2] and people[0] == people[1]  # two seeds, the same people


def test_a_point_counts_what_is_trained_on(tmp_path: Path) -> None:
    sweep = opened_sweep(tmp_path, shares=(0.5,), mixes={"market": ("data.corpora.synthetic.weight=2.0",)})
    run = sweep.runs[1]
    store = prepare_store(run.settings)
    (planned, *_) = plan_runs(sweep.runs, sweep.locations)
    careers = [row for at, row in enumerate(store.careers("train").table.to_pylist()) if at in planned.plan.order.rows]
    assert 0 < len(careers) < store.num_people("train")
    point = point_of(run, store, Path("runs/x"))
    assert (point.size, point.run, point.seed, point.sources, point.pretrained) == (
        "tiny",
        "runs/x",
        2,
        "synthetic",
        "",
    )
    assert point.num_people == len(careers)
    assert point.num_observations == sum(len(row["years"]) for row in careers)  # once, however often they are read
    assert point.num_tokens == 2 * sum(len(row["token_ids"]) for row in careers)
    assert point.epochs == 3
    # Width 32, an MLP of 64, 2 layers, one of two heads for keys and values; embeddings are tied.
    layer = 2 * 32 * 32 + 2 * 32 * 16 + 3 * 32 * 64
    assert point.num_non_embedding_params == 2 * layer + 5 * 32
    assert point.num_params == point.num_non_embedding_params + 400 * 32
    attended = sum(len(row["token_ids"]) ** 2 for row in careers) / 2  # pairs of tokens, of every career
    weights = 6 * (2 * layer + 400 * 32) * point.num_tokens
    assert point.flops == pytest.approx(3 * (weights + 12 * 2 * 32 * 2 * attended), rel=1e-9)


def test_a_queue_of_three_jobs_at_once_takes_the_next_run_as_soon_as_one_ends() -> None:
    fixed = ["plan.cluster.gpu_hours_between_failures=null", "plan.cluster.slow_gpu_share=0"]
    settings = settings_of_sweep("list", "+sweep=scaling_law", "array.max_parallel=3")
    settings = dataclasses.replace(settings, common=(*settings.common, *fixed), more_runs={})
    planned = plan_runs(list_runs(settings, compose_run), {})
    ends = [0.0, 0.0, 0.0]
    for each in planned:  # nothing is drawn, so a run takes what the plan of it alone says
        (hours, *others) = set(simulate_run(each.estimate(), find_held_out(each.run.settings)).hours)
        assert not others
        ends[ends.index(min(ends))] += hours
    num_gpus = 3 * planned[0].run.settings.plan.num_gpus
    line = queue_line(settings, planned)
    hours = f"{max(ends):,.1f}"
    assert line.startswith(f"queue: 3 jobs at once on {num_gpus} GPUs are done in {hours} hours ({hours} to {hours}), ")
    assert f"GPUs {sum(ends) / (3 * max(ends)):.0%} busy" in line


def test_tables_have_every_run_and_fit_a_terminal() -> None:
    settings = settings_of_sweep("list", "+sweep=scaling_law")
    assert settings.action == "list"
    planned = plan_runs(list_runs(settings, compose_run), {})
    lines = printed(plan_table(settings.name, planned))
    assert max(map(len, lines)) <= 80
    assert sum(line.startswith("scratch_") for line in lines) == len(planned) == 41
    assert [line.split()[0] for line in printed(models_table(settings.name, planned))[2:]] == list(settings.models)
    (total,) = [line.split() for line in lines if line.startswith("together")]
    dollars = sum(each.estimate().hours * 8 * 2.5 for each in planned)
    assert float(total[-1]) == pytest.approx(dollars, abs=0.006)
    assert "careers and tokens are assumed" in " ".join(" ".join(lines).split())


def test_the_plan_says_when_runs_at_the_same_time_are_done() -> None:
    """A run starts when the first of those at work ends."""
    settings = settings_of_sweep("list", "+sweep=synthetic_law")
    planned = plan_runs(list_runs(settings, compose_run), {})
    hours, ends = [each.estimate().hours for each in planned], [0.0, 0.0]
    for each in hours:
        ends[ends.index(min(ends))] += each
    assert sum(hours) / 2 <= max(ends) < sum(hours)
    caption = " ".join(" ".join(printed(plan_table("x", planned, max_parallel=2))).split())
    assert f"2 runs at a time take {60 * max(ends):.1f} min; " in caption
    assert "at a time" not in " ".join(printed(plan_table("x", planned)))
    assert "at a time" not in " ".join(printed(plan_table("x", planned[:1], max_parallel=8)))
    few = " ".join(" ".join(printed(plan_table("x", planned[:2], max_parallel=8))).split())
    assert f"2 runs at a time take {60 * max(hours[:2]):.1f} min; " in few


def test_runs_that_may_end_early_are_refused(tmp_path: Path) -> None:
    settings = sweep_settings(tmp_path, models={"tiny": ("training.patience=3",)})
    with raises("sweep/incomplete-schedule", "tiny", "training.patience=3"):
        list_runs(settings, compose_run)


def test_settings_that_do_not_go_together_are_refused(tmp_path: Path) -> None:
    given = ["name=x", "models={tiny: []}", "mixes={market: []}"]
    assert settings_of_sweep(*given).action == "run"
    refused = {
        "num_nodes=2": ("setting num_nodes", "executor=slurm"),
        "+more_runs.a={model: small, mix: market, share: 1.0, seeds: [2]}": ("more_runs.a.model", "one of tiny"),
        "shares=[0.5,1.5]": ("shares", "1.5"),
        "seeds=[]": ("seeds", "at least one"),
        "baselines=[truths]": ("baselines", "truths"),
    }
    for override, words in refused.items():
        with raises("settings/invalid", *words):
            settings_of_sweep(*given, override)
    with raises("settings/invalid", "action", "one of run, list, status, cancel"):
        settings_of_sweep("stop", *given)


def test_a_run_has_as_many_gpus_as_ranks(tmp_path: Path) -> None:
    settings = dataclasses.replace(sweep_settings(tmp_path), executor="slurm", num_ranks=8, num_nodes=4)
    assert {run.settings.plan.num_gpus for run in list_runs(settings, compose_run)} == {32}


def test_the_sweep_of_wandb_starts_deepspeed_with_settings_that_compose() -> None:
    """An agent puts the parameters in the place of ${args_no_hyphens} and calls every item of the list as a word."""
    sweep = yaml.safe_load((CONF / "wandb_sweep/learning_rates.yaml").read_text())
    launcher = sweep["command"].index("deepspeed")
    assert sweep["command"][launcher - 1 : launcher + 3] == ["${env}", "deepspeed", "--num_gpus=2", "${program}"]
    assert sweep["command"][-1] == "${args_no_hyphens}" and (PROJECT / sweep["program"]).is_file()
    chosen = [f"{name}={value}" for name, of in sweep["parameters"].items() for value in of["values"][:1]]
    settings = compose_run([*sweep["command"][launcher + 3 : -1], *chosen])
    assert (settings.optimizer.learning_rate, settings.tracking.wandb) == (1e-3, "online")
