"""A path that is no folder: a typo is said at once, and a hub that is away is asked once."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from helpers.errors import raises
from helpers.processes import free_port
from huggingface_hub import constants

from laborllm_dist.cli import compose_settings
from laborllm_dist.config.run import RunSettings
from laborllm_dist.models.loading import check_weights
from laborllm_dist.store import hub
from laborllm_dist.store.hub import is_hub_id
from laborllm_dist.store.tokenizer import load_tokenizer


def check_model(path: str) -> None:
    settings = compose_settings(RunSettings, "run", ["model=pretrained", "tokenizer=pretrained", f"model.path={path}"])
    check_weights(settings.model)


@pytest.mark.parametrize(
    "path", ["models/typo", "models/typo/", "./models/typo", "../typo", "models/a/b", "typo", "/no/typo"]
)
def test_a_typo_in_a_path_asks_nobody(path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "models" / "llama").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "_hub_answers", lambda _: pytest.fail("the hub is asked"))
    assert not is_hub_id(path)
    for label, work in (("model/no-weights", check_model), ("tokenizer/no-tokenizer", load_tokenizer)):
        with raises(label, path) as error:
            work(path)
        assert "\n" not in str(error.value)


def test_ids_of_the_hub_are_known_by_their_form(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_hub_id("meta-llama/Llama-2-7b-hf")
    assert is_hub_id("models/typo")  # no folder of that name is here
    assert not is_hub_id("a b/c")
    assert not is_hub_id("gpt2")


def test_a_hub_that_is_away_is_said_in_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{free_port()}")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    started = time.monotonic()
    for label, work in (("model/no-weights", check_model), ("tokenizer/no-tokenizer", load_tokenizer)):
        with raises(label, "owner/typo") as error:
            work("owner/typo")
        assert re.search(r"couldn't connect|[Oo]ffline", str(error.value))
        assert "\n" not in str(error.value)
    assert time.monotonic() - started < 12
