"""Forecast several years ahead: deepspeed launch/forecast.py run=runs/NAME horizon=2 [steps=sampled]."""

from laborllm_dist.cli import launch
from laborllm_dist.config.evaluation import ForecastSettings

HELP = """
Forecast the occupation of a later observed year, directly and composed from yearly steps, and compare the two.

    deepspeed launch/forecast.py run=runs/pooled_13b horizon=2
    deepspeed launch/forecast.py run=runs/pooled_13b horizon=2 max_pruned_mass=0.001 max_people=100 model.name=bounded
    deepspeed launch/forecast.py run=runs/pooled_13b horizon=5 steps=sampled paths=200
    deepspeed launch/forecast.py run=runs/with_head horizon=2 title_head=true
"""


def main(settings: ForecastSettings) -> None:
    """Join the ranks and forecast."""
    from laborllm_dist.distributed.context import init_distributed
    from laborllm_dist.forecasting.run import forecast_run, run_forecasts

    run = forecast_run(settings)
    with init_distributed(run.settings.ranks) as ranks:
        run_forecasts(settings, run, ranks)


if __name__ == "__main__":
    launch(ForecastSettings, "forecast", main, HELP)
