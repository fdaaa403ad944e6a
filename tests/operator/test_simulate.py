"""The simulated fleet: traces, profiles, faults, policies, and the command."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from click.testing import CliRunner

from octavo_cli.main import cli, explain
from octavo_operator.simulate.faults import Faults, parse_faults
from octavo_operator.simulate.policies.bounds import StaticPeak
from octavo_operator.simulate.policies.catalogue import POLICIES, best_of, evaluate, pareto, smallest_static
from octavo_operator.simulate.policies.own import Octavo
from octavo_operator.simulate.prefixes import Prefixes
from octavo_operator.simulate.routers import CachedAndLight
from octavo_operator.simulate.routing import compare
from octavo_operator.simulate.score import Result
from octavo_operator.simulate.trace import Arrival, Trace, TraceError, read_trace, shape, superpose
from octavo_operator.simulate.world import Scenario, World

AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def quiet(name: str, share: float) -> None:
    """Nobody looks."""


def steady(rate: float, seconds: float = 1500.0, prompt: int = 1200, output: int = 200) -> Trace:
    """Poisson arrivals."""
    base = Trace(tuple(Arrival(number / rate, prompt, output) for number in range(int(rate * seconds))), seconds)
    return shape(base, "flat", 5)


def play(scenario: Scenario, replicas: int | None = None) -> tuple[Result, World, Octavo | StaticPeak]:
    policy = Octavo() if replicas is None else StaticPeak(replicas)
    world = World(scenario, policy, CachedAndLight(), lambda now: None)
    return world.run(), world, policy


def test_both_formats_are_told_by_what_is_in_them(tmp_path: Path) -> None:
    csv, lines = tmp_path / "one", tmp_path / "two"
    rows = ["2023-11-16 18:15:46.6805900,374,44", "2023-11-16 18:15:50.9951690,396,109"]
    csv.write_text(AZURE + "\r\n".join(rows) + "\r\n")
    lines.write_text(
        '{"timestamp": 4000, "input_length": 9, "output_length": 2, "hash_ids": [1, 2]}\n'
        '{"timestamp": 1000, "input_length": 7, "output_length": 5, "hash_ids": []}\n'
    )
    first = read_trace(csv).arrivals
    assert [(each.prompt, each.output) for each in first] == [(374, 44), (396, 109)]
    assert first[1].time - first[0].time == pytest.approx(4.314579, abs=1e-6)
    second = read_trace(lines)
    assert second.arrivals == (Arrival(0.0, 7, 5), Arrival(3.0, 9, 2, (1, 2)))


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "neither a JSON object nor the columns"),
        ("a,b\n1,2\n", "neither a JSON object nor the columns"),
        (AZURE + "2023-11-16 18:15:46,x,3\n", "line 2"),
        (AZURE + "2023-11-16 18:15:46,5,3\n", "two requests and more"),
        ('{"timestamp": 1}\n', "line 1: expected an object with timestamp"),
        ('{"timestamp": 1, "input_length": -4, "output_length": 1}\n', "at least 0"),
        ('{"timestamp": 1, "input_length"', "line 1"),
    ],
)
def test_a_file_that_is_no_trace_is_refused_with_the_line(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "trace"
    path.write_text(text)
    with pytest.raises(TraceError, match=what):
        read_trace(path)


def test_copies_share_no_prefix_and_keep_the_rate() -> None:
    base = Trace(tuple(Arrival(float(number), 600, 5, (1, number)) for number in range(1000)), 1000.0)
    scaled = superpose(base, 2.5, 3)
    assert len(scaled.arrivals) == pytest.approx(2500, rel=0.03)
    assert all(one.time <= two.time < 1000.0 for one, two in pairwise(scaled.arrivals))
    assert len({each.salt for each in scaled.arrivals}) == 3
    assert superpose(base, 2.5, 3) == scaled != superpose(base, 2.5, 4)


def test_profiles_have_the_trace_s_rate_and_their_shape() -> None:
    base = steady(20.0, 3600.0)
    parts = {}
    for profile in ("flat", "diurnal", "burst"):
        shaped = shape(base, profile, 1, 3600.0)  # type: ignore[arg-type]
        counts = [0] * 36
        for each in shaped.arrivals:
            counts[int(each.time / 100)] += 1
        parts[profile] = counts
        if profile != "burst":
            assert len(shaped.arrivals) == pytest.approx(72_000, rel=0.02)
    assert max(parts["flat"]) < 1.15 * min(parts["flat"])
    assert parts["diurnal"][18] > 6 * parts["diurnal"][0]
    assert max(parts["burst"]) > 2 * sorted(parts["burst"])[9]


def test_faults_are_read_and_wrong_ones_refused() -> None:
    assert parse_faults(["lost-scrapes=0.5", "crash", "no-node=1"]) == Faults(0.5, 1, 1.0, 600.0)
    for bad in ("fire", "crash=x", "lost-scrapes=1.5", "slow-startup=0.1"):
        with pytest.raises(ValueError, match=r"no fault|expected a number|out of bounds"):
            parse_faults([bad])


def test_the_same_seed_gives_the_same_figures_and_another_one_others() -> None:
    scenario = Scenario(steady(30.0), startup=30.0, warmup=300.0, faults=Faults(lost_scrapes=0.2, crash=400.0))
    first, again = play(scenario)[0], play(scenario)[0]
    assert first == again
    assert play(replace(scenario, seed=9))[0] != first


def test_every_request_ends_once_whatever_crashes() -> None:
    scenario = Scenario(steady(30.0), startup=20.0, warmup=0.0, faults=Faults(crash=60.0))
    result, world, _ = play(scenario, 3)
    assert len(world.score.ttft) + result.dropped == world.score.total == len(scenario.trace.arrivals)
    assert result.dropped < 200  # while all three were down at once, more than the gateway holds came
    assert world.watch.in_flight == 0 and not world.held
    assert all(pod.outstanding == 0 and pod.load == 0 for pod in world.cluster.pods)


def test_gpu_hours_count_loading_and_only_the_scored_time() -> None:
    scenario = Scenario(steady(5.0, 1200.0), warmup=300.0)
    assert play(scenario, 4)[0].gpu_hours == pytest.approx(4 * 900 / 3600)


def test_what_no_node_takes_costs_nothing_and_stays_pending() -> None:
    # The load jumps in the middle third.
    times = [number / 10 for number in range(6000)] + [600 + number / 40 for number in range(24_000)]
    trace = Trace(tuple(Arrival(time, 2000, 200) for time in times), 1200.0)
    scenario = Scenario(trace, startup=20.0, warmup=0.0, faults=Faults(no_node=0), max_replicas=16)
    free = play(replace(scenario, faults=Faults()))[0]
    result, world, policy = play(scenario)
    assert isinstance(policy, Octavo)
    third = scenario.trace.seconds / 3
    during = [count for time, count, _, _ in policy.log if third + 60 < time < 2 * third]
    assert max(during) > world.cluster.first  # more were asked for, and …
    assert result.attainment < free.attainment - 0.1  # … were not there in time
    assert max(count for time, count, _, _ in policy.log if time < third) < max(during)


def test_twenty_five_percent_of_scrapes_lost_change_little() -> None:
    trace = shape(steady(25.0, 2400.0, prompt=4000, output=300), "diurnal", 2, 2400.0)
    whole = play(Scenario(trace, startup=60.0))[0]
    lossy = play(Scenario(trace, startup=60.0, faults=Faults(lost_scrapes=0.25)))[0]
    assert lossy.gpu_hours == pytest.approx(whole.gpu_hours, rel=0.1)
    assert lossy.attainment == pytest.approx(whole.attainment, abs=0.01)


def test_it_follows_the_load_for_less_than_a_static_fleet_and_in_time() -> None:
    """Lengths unlike those of any trace that the defaults were looked at with, on other hardware."""
    trace = shape(steady(16.0, 3600.0, prompt=2500, output=600), "diurnal", 4, 3600.0)
    scenario = Scenario(trace, startup=45.0, seed=11)
    scenario = replace(scenario, hardware=replace(scenario.hardware.faster(0.7), kv_tokens=200_000))
    own = play(scenario)[0]
    static = smallest_static(scenario, quiet)
    assert own.attainment >= 0.99
    assert own.gpu_hours <= 0.9 * static.gpu_hours
    assert own.reversals == 0


def test_a_static_fleet_is_the_smallest_that_reaches_the_goal() -> None:
    scenario = Scenario(steady(40.0), warmup=100.0)
    best = smallest_static(scenario, quiet)
    count = int(best.setting.removeprefix("replicas="))
    assert best.attainment >= 0.99 > play(scenario, count - 1)[0].attainment


@pytest.mark.parametrize("name", POLICIES)
def test_every_policy_plays_a_trace_to_its_end(name: str) -> None:
    scenario = Scenario(steady(25.0, 900.0), startup=30.0, warmup=200.0, max_replicas=12)
    (result,) = evaluate(scenario, name, quiet, sweep=False)
    assert result.policy == name
    assert 0 <= result.attainment <= 1 and 0 < result.gpu_hours < 12 and result.max_replicas <= 12


def results(*pairs: tuple[float, float]) -> Sequence[Result]:
    return [Result("p", attainment, hours, 1, 1, 1, 1, 0, 0) for attainment, hours in pairs]


def test_the_front_and_the_best_setting_are_what_they_are_called() -> None:
    some = results((0.999, 5.0), (0.991, 3.0), (0.98, 1.0), (0.97, 2.0), (0.995, 6.0))
    assert best_of(some) is some[1]
    assert pareto(some) == [some[2], some[1], some[0]]
    assert best_of(some[2:4]) is some[2]


def test_a_prefix_is_hit_as_far_as_it_is_known_and_the_oldest_is_evicted() -> None:
    prefixes = Prefixes(4 * 512)
    assert prefixes.take((1, 2, 3), 1600) == 0
    assert prefixes.take((1, 2, 9), 1600) == 1024
    assert prefixes.take((1, 2), 1024) == 1023  # the last token is always computed
    prefixes.take((5, 6), 1024)
    assert prefixes.match((9,)) == 0 and prefixes.match((1, 2)) == 2


def test_routing_by_prefixes_finds_more_than_chance_and_stays_even() -> None:
    chance = shape(
        Trace(
            tuple(
                Arrival(number / 4, 512 * 8 + 100, 60, (0, *(100 * (number % 23) + block for block in range(1, 8))))
                for number in range(4000)
            ),
            1000.0,
        ),
        "flat",
        1,
    )
    hardware = replace(Scenario(chance).hardware, kv_tokens=60_000)
    routed = {each.routing: each for each in compare(Scenario(chance, hardware, warmup=100.0), 4, quiet)}
    assert list(routed) == ["random", "round-robin", "least-loaded", "bounded-hash", "octavo", "oracle"]
    assert routed["octavo"].hit_rate > 1.3 * routed["random"].hit_rate
    assert routed["octavo"].imbalance < 1.5
    assert routed["octavo"].ttft_p50_ms < routed["random"].ttft_p50_ms


@pytest.fixture
def csv(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE + "".join(f"{number / 12},800,{40 + number % 100}\n" for number in range(6000)))
    return path


def test_the_command_prints_the_agreed_object(csv: Path) -> None:
    arguments = ["simulate", "--trace", str(csv), "--warmup", "60", "--startup", "30", "--seed", "1", "--json"]
    answer = CliRunner().invoke(cli, [*arguments, "--policy", "octavo", "--policy", "keda"])
    assert answer.exit_code == 0, answer.output
    told = json.loads(answer.stdout)["results"]
    assert [each["policy"] for each in told] == ["octavo", "keda"]
    keys = {"policy", "attainment", "gpu_hours", "ttft_p50_ms", "ttft_p99_ms", "tpot_p99_ms", "max_replicas"}
    for each in told:
        assert keys | {"reversals", "dropped"} <= each.keys()
        assert all(each[key] is None or math.isfinite(each[key]) for key in keys - {"policy"})
    assert CliRunner().invoke(cli, [*arguments, "--policy", "octavo,keda"]).stdout == answer.stdout


def test_the_command_tells_a_table_and_names_every_policy_in_its_help(csv: Path) -> None:
    answer = CliRunner().invoke(cli, ["simulate", "--trace", str(csv), "--warmup", "60", "--policy", "octavo"])
    assert answer.exit_code == 0 and "attained" in answer.stdout and "octavo" in answer.stdout
    text = "".join(CliRunner().invoke(cli, ["simulate", "--help"]).stdout.split())
    assert ",".join(POLICIES) in text


@pytest.mark.parametrize(
    ("extra", "what"),
    [
        (["--policy", "magic"], "no policy 'magic'; there are all, octavo"),
        (["--fault", "fire"], "no fault 'fire'"),
        (["--warmup", "5000"], "give a smaller --warmup"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(csv: Path, extra: list[str], what: str) -> None:
    answer = CliRunner().invoke(cli, ["simulate", "--trace", str(csv), *extra])
    assert answer.exception is not None
    message, code = explain(answer.exception)
    assert what in message and code == 2


def test_a_plot_is_a_png_or_an_error_that_says_what_to_install(csv: Path, tmp_path: Path) -> None:
    target = tmp_path / "front.png"
    arguments = ["simulate", "--trace", str(csv), "--warmup", "60", "--policy", "octavo", "--plot", str(target)]
    answer = CliRunner().invoke(cli, arguments)
    try:
        import matplotlib  # noqa: F401
    except ModuleNotFoundError:
        assert answer.exception is not None
        assert "pip install 'octavo[plot]'" in explain(answer.exception)[0]
    else:
        assert answer.exit_code == 0, answer.output
        assert target.read_bytes().startswith(b"\x89PNG")
