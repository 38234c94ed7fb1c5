"""A profile killed again and again goes on to the same numbers, and measures nothing twice."""

import multiprocessing
import random
import time

import pytest

from advisor import pipeline
from advisor.types import ProfileRequest
from storage.engine import open_repository
from tests.tiny_models import tiny_folder

KILLS = 10


def profile_into(url: str, request: ProfileRequest) -> None:
    """What a child process does until it is killed."""
    pipeline.profile_model(request, open_repository(url))


@pytest.fixture(scope="module")
def forks():
    """Processes that start with torch loaded, so that a kill meets the measuring and not the imports."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["advisor.profiler.run", "transformers.models.llama.modeling_llama"])
    return context


@pytest.mark.parametrize("method", ["exact", "fisher", "auto"])
def test_a_profile_killed_ten_times_resumes_to_the_same_numbers(method, forks, tmp_path):
    request = ProfileRequest(
        model=str(tiny_folder(tmp_path / "model", num_hidden_layers=4)),
        method=method,
        samples=48,
        seq_len=128,
        formats=("int8", "int4_g32", "int2_g64"),
    )
    straight = f"sqlite:///{tmp_path / 'straight.sqlite'}"
    began = time.monotonic()
    child = forks.Process(target=profile_into, args=(straight, request))
    child.start()
    child.join()
    whole = time.monotonic() - began
    assert child.exitcode == 0

    url = f"sqlite:///{tmp_path / 'killed.sqlite'}"
    chance, killed, stored = random.Random(0), 0, []
    while killed < KILLS:
        child = forks.Process(target=profile_into, args=(url, request))
        child.start()
        child.join(chance.uniform(0.3, 0.9) * whole)
        if child.is_alive():
            child.kill()
            child.join()
            killed += 1
        else:  # it got through between two kills: begin again
            assert child.exitcode == 0
            assert numbers(url, method) == numbers(straight, method)
            url = f"sqlite:///{tmp_path / f'killed{killed}.sqlite'}"
        stored.append(len(numbers(url, method)))
    profile_into(url, request)
    assert numbers(url, method) == numbers(straight, method)
    assert any(stored), "no kill came while there was something to lose"


def numbers(url: str, method: str) -> dict:
    """Every score of the profile of this method, to the last bit; times are not scores."""
    store = open_repository(url)
    found = [summary for summary in store.profiles() if summary.method == method]
    measurements = store.profile(found[0].id).measurements if found else ()
    return {(m.layer, m.format): m.model_dump(exclude={"seconds"}) for m in measurements}
