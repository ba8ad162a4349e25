"""What a run reserves, what fits, and what is said if it does not."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.config import Config
from pipelines.runtime import resources


@pytest.mark.parametrize(
    "nodes, changes, workers",
    [
        ([2], {"num_workers": 2, "cpus_per_worker": 0.5}, None),
        ([4], {"num_workers": 2, "threads": 2}, 2),  # Ray was told of 4 CPUs on a machine of 2 cores
        ([4], {"num_workers": 1, "threads": 2}, None),
        ([4], {"num_workers": 2, "threads": 2, "use_gpu": True}, None),
        ([4, 4], {"num_workers": 8, "threads": 2}, 4),  # as many as a node holds
        ([4, 4], {"num_workers": 8, "threads": 2, "cpus_per_worker": 2}, None),
    ],
)
def test_more_threads_than_cores(
    nodes: list[int], changes: dict[str, Any], workers: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray.nodes", lambda: [{"Alive": True, "Resources": {"CPU": float(cpus)}} for cpus in nodes])
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    said = resources.oversubscribed(Config().replace({f"train.{key}": value for key, value in changes.items()}))
    if workers is None:
        assert said is None
    else:
        cores = 2 if len(nodes) == 1 else 4
        assert said is not None and said.startswith(f"train.threads=2: {workers} workers on a node with {cores} cores ")


def test_all_that_is_lacking_is_said_the_gpus_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    config = Config().replace({"train.use_gpu": True, "train.num_workers": 1, "train.cpus_per_worker": 7})
    of_gpus, of_cpus = resources.lacking(config, {"CPU": 4.0})
    assert of_gpus.startswith("train.use_gpu=true: 1 worker at 1 GPU each, but Ray has 0; ")
    assert "reserves 8 CPUs, but Ray has 4 (2 cores, counted twice); " in of_cpus
    with pytest.raises(resources.ResourceError, match="train.use_gpu=true"):
        resources.check(config, {"CPU": 4.0})


@pytest.mark.parametrize(
    ("changes", "cpus", "gpus", "count"),
    [
        ({}, 2, 0, 1),  # one worker and one for the data
        ({}, 9, 0, 4),
        ({}, 1, 0, 0),
        ({"evaluate.actors": 4}, 9, 0, 2),
        ({"train.num_workers": 2, "train.cpus_per_worker": 0.5}, 8, 0, 4),
        ({"train.use_gpu": True}, 64, 3, 3),
        ({"train.use_gpu": True, "train.gpus_per_worker": 0.5}, 64, 3, 6),
        ({"train.use_gpu": True, "train.gpus_per_worker": 0.3}, 64, 1, 3),
        ({"train.use_gpu": True, "train.gpus_per_worker": 0.2, "train.num_workers": 4}, 64, 2, 2),
        ({"train.use_gpu": True, "train.num_workers": 2}, 64, 3, 1),
        ({"train.use_gpu": True}, 64, 0, 0),
        ({"evaluate.use_gpu": True, "evaluate.actors": 2}, 64, 5, 2),
        ({"train.num_workers": 0}, 9, 0, 4),
        ({"train.num_workers": 0, "evaluate.actors": 2}, 9, 0, 3),  # the process keeps its CPU while they evaluate
        ({"train.num_workers": 0, "train.use_gpu": True}, 64, 3, 3),
        ({"train.num_workers": 0, "train.use_gpu": True, "evaluate.use_gpu": True, "evaluate.actors": 2}, 64, 6, 2),
        ({"train.num_workers": 0, "train.use_gpu": True, "evaluate.use_gpu": True, "evaluate.actors": 0}, 64, 3, 3),
    ],
)
def test_how_many_runs_fit(changes: dict[str, Any], cpus: float, gpus: float, count: int) -> None:
    assert resources.runs_at_once(Config().replace({"train.batch_size": 4, **changes}), cpus, gpus) == count


@pytest.mark.parametrize(
    ("share", "count"),
    [*((1 / count, count) for count in (1, 2, 3, 5, 6, 7, 9, 10, 20, 25, 40, 50, 100)), (0.1667, 6), (0.1429, 6)],
)
def test_as_many_workers_share_a_gpu_as_ray_places_on_it(share: float, count: int) -> None:
    config = Config().replace({"train.use_gpu": True, "train.gpus_per_worker": share})
    assert resources.workers_on_gpus(config, 3) == 3 * count
    assert resources.sharing(config, 1000, on_gpus=True) == count


def having(monkeypatch: pytest.MonkeyPatch, **have: float) -> None:
    """Ray is up, and has so much."""
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    monkeypatch.setattr("ray.nodes", lambda: [{}])
    monkeypatch.setattr(resources, "_in_a_worker", lambda: False)
    monkeypatch.setattr("ray.cluster_resources", lambda: have)
    monkeypatch.setattr("ray.available_resources", lambda: {**have, "CPU": 0.0})
    monkeypatch.setattr("pipelines.runtime.private.autoscaler_limits", lambda: {})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"train.num_workers": 4}, ["train.num_workers=4", "train.data_cpus=1", "5 CPUs", "Ray has 4"]),
        ({"train.use_gpu": True}, ["train.use_gpu=true", "1 GPU", "Ray has 0"]),
        ({"evaluate.actors": 5}, ["evaluate.actors=5", "Ray has 4"]),
        ({"evaluate.use_gpu": True, "evaluate.actors": 1}, ["evaluate.use_gpu=true", "Ray has 0"]),
        ({"train.num_workers": 0, "evaluate.actors": 4}, ["evaluate.actors=4", "own process", "Ray has 4"]),
    ],
)
def test_a_run_that_does_not_fit_is_refused(
    changes: dict[str, Any], words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    having(monkeypatch, CPU=4.0)
    config = Config().replace(changes)
    resources.check(Config())
    for check in (resources.check, lambda config: resources.runs_that_fit([Config(), config], None, verbose=False)):
        with pytest.raises(resources.ResourceError) as error:
            check(config)
        assert all(word in str(error.value) for word in words) and "\n" not in str(error.value)


def test_a_run_without_workers_is_none_of_a_clusters_head(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, CPU=4.0)
    config = Config().replace({"train.num_workers": 0})
    resources.check_process(config)
    monkeypatch.setattr("ray.nodes", lambda: [{}, {}])
    with pytest.raises(resources.ResourceError, match=r"train.num_workers=0: .* head; give 1 worker or more"):
        resources.check_process(config)
    resources.check_process(Config())
    monkeypatch.setattr(resources, "_in_a_worker", lambda: True)  # a run of a table, which has reserved what it uses
    resources.check_process(config)
    assert resources.process_resources(config) == {"CPU": 1.0, "GPU": 0.0}
    assert resources.process_resources(Config()) == {"CPU": 0.0, "GPU": 0.0}
    assert resources.evaluation_actors(config, images=100) == 0


def test_runs_fit_as_the_largest_of_them_does(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, CPU=9.0)
    small, large = Config(), Config().replace({"train.num_workers": 2})
    assert resources.runs_that_fit([small], None, verbose=False) == 4
    assert resources.runs_that_fit([small, large], None, verbose=False) == 3
    assert resources.runs_that_fit([small, large], 2, verbose=False) == 2
    with pytest.raises(resources.ResourceError, match="concurrent=0"):
        resources.runs_that_fit([small], 0, verbose=False)


def test_an_elastic_run_fits_with_fewer_workers_than_its_most(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, CPU=2.0)
    elastic = Config().replace({"train.num_workers": (1, 8)})
    assert resources.runs_that_fit([elastic], None, verbose=False) == 1


def test_what_the_workers_are_waiting_for(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, CPU=4.0, GPU=1.0)
    config = Config().replace({"train.num_workers": (1, 2), "train.use_gpu": True, "train.gpus_per_worker": 0.5})
    assert resources.shortage(config) == (
        "waiting for 1 to 2 workers with 1 CPU and 0.5 GPU each; Ray has 0 CPU and 1 GPU free"
    )


@pytest.mark.parametrize(
    ("changes", "cores", "images", "actors"),
    [
        ({}, 2, 500, 0),
        ({}, 16, 500, 16),
        ({}, 16, 51, 6),
        ({}, 16, 8, 0),
        ({"evaluate.use_gpu": True}, 16, 500, 0),
        ({"evaluate.actors": 3}, 2, 8, 3),
    ],
)
def test_how_many_actors_suit_a_machine(
    changes: dict[str, Any], cores: int, images: int, actors: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    monkeypatch.setattr(resources, "on_a_cluster", lambda: False)
    assert resources.evaluation_actors(Config().replace(changes), images) == actors


def test_how_many_actors_suit_a_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    having(monkeypatch, CPU=64.0, GPU=2.0)
    monkeypatch.setattr("ray.nodes", lambda: [{}, {}])
    assert resources.on_a_cluster()
    assert resources.evaluation_actors(Config(), 500) == 62  # one for each eighth image
    assert resources.evaluation_actors(Config().replace({"evaluate.use_gpu": True}), 500) == 2
    monkeypatch.setattr(resources, "_in_a_worker", lambda: True)  # such as a trial of a sweep
    assert resources.evaluation_actors(Config(), 500) == 1
