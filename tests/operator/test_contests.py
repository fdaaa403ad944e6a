"""Who fights over an object with the operator is told of, and does not have it write for ever."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from kube_fixture import ControlPlane, Faults, Kube
from llm_deployments import (
    API,
    KIND,
    NOW,
    SETTINGS,
    Passes,
    conditions,
    llm_deployment,
    operating,
    reconciling,
    until_condition,
)
from octavo_operator import drift
from octavo_operator.contests import FIRST_SECONDS, FREE, MOST_SECONDS, QUIET_SECONDS, Contests
from octavo_operator.kube import Kube as CachelessKube
from octavo_operator.kube import connect
from octavo_operator.reconcile import Reconciler
from octavo_operator.workqueue import Retry

Object = dict[str, Any]
SERVICE = ("v1", "Service", "demo")


@pytest.fixture
async def passes(control_plane: ControlPlane, octavo: Kube, faults: Faults) -> AsyncIterator[Passes]:
    async with reconciling(control_plane, octavo.namespace) as made:
        yield made


def service(port: int = 80, name: str = "demo") -> Object:
    return drift.stamped({"kind": "Service", "metadata": {"name": name, "namespace": "team"}, "spec": {"port": port}})


def written(times: int, now: float = 0.0) -> Contests:
    contests = Contests()
    for _ in range(times):
        contests.wrote(service(), now)
    return contests


def test_some_corrections_in_a_row_are_free_and_nothing_is_told() -> None:
    contests = written(FREE)
    assert contests.may_write(service(), 0.0) and contests.problem([service()], 0.0) is None


def test_then_each_waits_twice_as_long_up_to_a_limit() -> None:
    waits = []
    for times in range(FREE + 1, FREE + 12):
        contests = written(times)
        waits.append(contests.wait([service()], 0.0))
        assert not contests.may_write(service(), waits[-1] - 0.1) and contests.may_write(service(), waits[-1])
    assert waits[:4] == [FIRST_SECONDS * 2**n for n in range(4)]
    assert waits[-1] == MOST_SECONDS == max(waits)


def test_a_fight_is_told_of_until_nothing_had_to_be_put_right_for_a_while() -> None:
    contests = written(FREE + 1)
    told = contests.problem([service(name="other"), service()], QUIET_SECONDS - 1)
    assert told is not None and told.reason == "Contested" and "the Service demo again and again" in told.message
    assert contests.wait([service()], QUIET_SECONDS - 2) == 2.0
    assert contests.problem([service()], QUIET_SECONDS) is None
    contests.wrote(service(), QUIET_SECONDS)
    assert contests.problem([service()], QUIET_SECONDS) is None, "it begins anew"
    long = written(FREE + 20)
    assert long.problem([service()], 2 * MOST_SECONDS - 1) is not None, "a slow fight is one, too"


def test_another_content_is_no_fight_and_what_is_gone_is_forgotten() -> None:
    contests = written(FREE + 1)
    assert contests.may_write(service(81), 0.0) and contests.problem([service(81)], 0.0) is None
    contests.forget("team", "demo")
    assert contests.may_write(service(), 0.0)


async def test_what_is_changed_again_and_again_is_put_right_ever_more_seldom(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    seconds = 0

    def clock() -> str:
        return f"2026-01-01T00:{seconds // 60:02}:{seconds % 60:02}Z"

    async def change() -> None:
        live = await octavo.get(*SERVICE)
        ports = [each | {"appProtocol": "theirs"} for each in live["spec"]["ports"]]
        await octavo.patch(live, {"spec": {"ports": ports}})

    async def is_right() -> bool:
        return bool((await octavo.get(*SERVICE))["spec"]["ports"][0]["appProtocol"] == "http")

    async with connect(control_plane.kubeconfig) as api:
        passes = Passes(Reconciler(api, SETTINGS, clock), octavo.namespace)
        made = await octavo.create(llm_deployment())
        await passes.once()
        for _ in range(FREE - 1):
            await change()
            await passes.once()
            assert await is_right()
        await change()
        with pytest.raises(Retry) as told:
            await passes.once()
        assert told.value.is_gentle and told.value.after == FIRST_SECONDS and await is_right()
        seen = await conditions(octavo)
        assert (seen["Degraded"][:2], seen["Ready"][:2]) == (("True", "Contested"), ("False", "Contested"))
        assert "--show-managed-fields" in seen["Degraded"][2] and seen["Progressing"][1] != "Blocked"
        await change()
        faults.reset()
        with pytest.raises(Retry):
            await passes.once()
        assert not await is_right() and faults.writes() == []
        await octavo.patch(made, {"spec": {"replicas": 3}})
        with pytest.raises(Retry):
            await passes.once()
        assert (await octavo.get("apps/v1", "Deployment", "demo"))["spec"]["replicas"] == 3, "nothing else waits"
        seconds = int(FIRST_SECONDS)
        with pytest.raises(Retry):
            await passes.once()
        assert await is_right()
        seconds += int(QUIET_SECONDS)
        await passes.once()
        assert (await conditions(octavo))["Degraded"][0] == "False"


class Admitted(CachelessKube):
    """A connection to an API server whose admission rewrites what is applied."""

    async def _apply(self, manifest: Object, **how: Any) -> Object:
        if manifest["kind"] == "Deployment":
            template = manifest["spec"]["template"]
            pod = template["spec"] | {"tolerations": [{"key": "theirs", "operator": "Exists"}]}
            manifest = manifest | {"spec": manifest["spec"] | {"template": template | {"spec": pod}}}
        if manifest["kind"] == "Service":
            ports = [each | {"appProtocol": "kubernetes.io/h2c"} for each in manifest["spec"]["ports"]]
            manifest = manifest | {"spec": manifest["spec"] | {"ports": ports}}
        return await super()._apply(manifest, **how)


async def test_what_admission_makes_of_an_object_is_no_fight_and_tried_once(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    async with connect(control_plane.kubeconfig) as api:
        passes = Passes(Reconciler(Admitted(api.api), SETTINGS, lambda: NOW), octavo.namespace)
        made = await octavo.create(llm_deployment())
        await passes.once()
        await passes.once()
        faults.reset()
        for _ in range(3 * FREE):
            await passes.once()
        assert [each.path for each in faults.writes() if "status" not in each.path and "events" not in each.path] == []
        assert (await conditions(octavo))["Degraded"][0] == "False"
        assert (await octavo.get(*SERVICE))["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c"
        await octavo.patch(made, {"spec": {"networking": {"service": {"port": 9000}}}})
        await passes.once()
        assert (await octavo.get(*SERVICE))["spec"]["ports"][0]["port"] == 9000
        live = await octavo.get(*SERVICE)
        theirs = [each | {"appProtocol": "theirs"} for each in live["spec"]["ports"]]
        await octavo.patch(live, {"spec": {"ports": theirs}})
        await passes.once()
        live = await octavo.get(*SERVICE)
        assert live["spec"]["ports"][0]["appProtocol"] == "kubernetes.io/h2c", "drift is still seen"
        await octavo.patch(live, {"metadata": {"labels": {"app.kubernetes.io/name": "theirs"}}})
        await passes.once()
        assert (await octavo.get(*SERVICE))["metadata"]["labels"]["app.kubernetes.io/name"] == "octavo"
        for _ in range(2):
            made = await octavo.get("apps/v1", "Deployment", "demo")
            await octavo.patch(made, {"metadata": {"labels": {"app.kubernetes.io/name": "theirs"}}})
            await passes.once()
            made = await octavo.get("apps/v1", "Deployment", "demo")
            assert made["metadata"]["labels"]["app.kubernetes.io/name"] == "octavo"
            assert made["spec"]["template"]["spec"]["tolerations"][0]["key"] == "theirs"


async def test_a_status_that_somebody_else_writes_too_is_put_right_ever_more_seldom(
    octavo: Kube, passes: Passes, faults: Faults
) -> None:
    async def change() -> None:
        live = await octavo.get(API, KIND, "demo")
        await octavo.patch(live, {"status": {"model": "theirs"}}, subresource="status")

    await octavo.create(llm_deployment())
    await passes.once()
    corrected = 0
    with pytest.raises(Retry) as told:
        for _ in range(4 * FREE):  # what its Deployment's controller writes meanwhile makes it another status
            await change()
            faults.reset()
            await passes.once()
            assert (await octavo.get(API, KIND, "demo"))["status"]["model"] == "demo"
            corrected += 1
    assert corrected >= FREE and told.value.is_gentle and told.value.after == FIRST_SECONDS
    assert faults.writes() == []


async def test_two_operators_that_want_different_things_do_not_write_for_ever(
    control_plane: ControlPlane, octavo: Kube, faults: Faults
) -> None:
    space = octavo.namespace
    async with (
        operating(control_plane, space, operator_namespace="one"),
        operating(control_plane, space, operator_namespace="two"),
    ):
        await octavo.create(llm_deployment())
        await until_condition(octavo, "Degraded", "True", reason="Contested")
        assert len([each for each in faults.writes() if "/networkpolicies/" in each.path]) <= 4 * (FREE + 1)
