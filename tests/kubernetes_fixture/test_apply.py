"""Server-side apply as the operator uses it: the same on the emulator and on a real API server."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes.aio.client.exceptions import ApiException

from kube_fixture import Kube
from kube_fixture.widget import GROUP, Widget

pytestmark = pytest.mark.every_control_plane
Object = dict[str, Any]


def version(held: Object) -> str:
    return str(held["metadata"]["resourceVersion"])


async def current(kube: Kube) -> Object:
    return await kube.get(f"{GROUP}/v1", "Widget", "w")


async def test_an_apply_creates_and_then_changes(kube: Kube, widget: Widget) -> None:
    made = await kube.apply(widget(labels={"a": "1"}))
    assert made["metadata"]["generation"] == 1 and made["spec"] == {"size": 3, "replicas": 1}
    changed = await kube.apply(widget(labels={"a": "1"}, size=4))
    assert changed["metadata"]["uid"] == made["metadata"]["uid"]
    assert changed["metadata"]["generation"] == 2 and changed["spec"]["size"] == 4


async def test_repeating_an_apply_makes_no_new_version(kube: Kube, widget: Widget) -> None:
    body = widget(labels={"a": "1"}, args=["x"], env=[{"name": "A", "value": "1"}], tags={"k": "v"}, tuning={})
    made = await kube.apply(body)
    assert version(await kube.apply(body)) == version(made)
    await kube.patch(made, {"status": {"phase": "Ready"}}, subresource="status")
    after_status = await current(kube)
    assert version(await kube.apply(body)) == version(after_status)


async def test_what_the_manager_leaves_out_is_removed(kube: Kube, widget: Widget) -> None:
    await kube.apply(widget(labels={"a": "1", "b": "2"}, mode="Fast", tags={"k": "v", "l": "w"}, args=["x", "y"]))
    changed = await kube.apply(widget(labels={"b": "2"}, tags={"l": "w"}, args=["y"]))
    assert changed["metadata"]["labels"] == {"b": "2"}
    assert changed["spec"] == {"size": 3, "replicas": 1, "tags": {"l": "w"}, "args": ["y"]}


async def test_a_mapping_left_out_is_removed_whole(kube: Kube, widget: Widget) -> None:
    await kube.apply(widget(labels={"a": "1"}, tags={"k": "v"}))
    changed = await kube.apply(widget())
    assert not changed["metadata"].get("labels")
    assert not changed["spec"].get("tags")


async def test_a_mapping_left_out_takes_its_defaults_along(kube: Kube, widget: Widget) -> None:
    made = await kube.apply(widget(tuning={"depth": 3}))
    assert made["spec"]["tuning"] == {"depth": 3, "policy": "Auto"}
    assert "tuning" not in (await kube.apply(widget()))["spec"]


async def test_an_empty_mapping_keeps_its_defaults(kube: Kube, widget: Widget) -> None:
    await kube.apply(widget(tuning={"depth": 3}))
    assert (await kube.apply(widget(tuning={})))["spec"]["tuning"] == {"policy": "Auto"}
    assert "tuning" not in (await kube.apply(widget()))["spec"]


async def test_what_another_changed_is_no_longer_the_managers_to_remove(kube: Kube, widget: Widget) -> None:
    made = await kube.apply(widget(mode="Fast"))
    await kube.patch(made, {"spec": {"mode": "Safe"}}, manager="stranger")
    assert (await kube.apply(widget()))["spec"]["mode"] == "Safe"


async def test_what_others_wrote_stays(kube: Kube, widget: Widget) -> None:
    made = await kube.apply(widget(labels={"a": "1"}, tags={"k": "v"}))
    change = {"metadata": {"labels": {"theirs": "x"}}, "spec": {"mode": "Safe", "tags": {"theirs": "x"}}}
    await kube.patch(made, change, manager="stranger")
    changed = await kube.apply(widget(size=5))
    assert changed["metadata"]["labels"] == {"theirs": "x"}
    assert changed["spec"] == {"size": 5, "replicas": 1, "mode": "Safe", "tags": {"theirs": "x"}}


async def test_elements_of_a_list_with_keys_are_merged_and_removed_by_key(kube: Kube, widget: Widget) -> None:
    mine = [{"name": "A", "value": "1"}, {"name": "B", "value": "2"}]
    made = await kube.apply(widget(env=mine))
    theirs = {**made, "spec": {**made["spec"], "env": [*made["spec"]["env"], {"name": "C", "value": "3"}]}}
    await kube.replace(theirs, manager="stranger")
    changed = await kube.apply(widget(env=[{"name": "B", "value": "4"}]))
    assert {each["name"]: each["value"] for each in changed["spec"]["env"]} == {"B": "4", "C": "3"}


async def test_a_change_by_another_is_a_conflict_unless_forced(kube: Kube, widget: Widget) -> None:
    made = await kube.apply(widget(mode="Fast"))
    await kube.patch(made, {"spec": {"mode": "Safe"}}, manager="stranger")
    with pytest.raises(ApiException) as error:
        await kube.apply(widget(mode="Fast"), force=False)
    assert error.value.status == 409 and "spec.mode" in str(error.value.body)
    assert (await current(kube))["spec"]["mode"] == "Safe"
    assert (await kube.apply(widget(mode="Fast")))["spec"]["mode"] == "Fast"
    assert (await kube.apply(widget(mode="Fast"), force=False))["spec"]["mode"] == "Fast"


async def test_two_managers_that_agree_do_not_conflict_and_share(kube: Kube, widget: Widget) -> None:
    await kube.apply(widget(mode="Fast"), manager="one", force=False)
    await kube.apply(widget(mode="Fast"), manager="two", force=False)
    changed = await kube.apply(widget(), manager="one", force=False)
    assert changed["spec"]["mode"] == "Fast"
    assert "mode" not in (await kube.apply(widget(), manager="two", force=False))["spec"]


async def test_replicas_left_out_of_an_apply_fall_back_to_the_default(kube: Kube, widget: Widget) -> None:
    await kube.apply(widget(replicas=3))
    assert (await kube.apply(widget()))["spec"]["replicas"] == 1


async def test_the_status_is_applied_apart(kube: Kube, widget: Widget) -> None:
    made = await kube.apply(widget())
    body = {**widget(size=9), "status": {"phase": "Ready", "replicas": 2}}
    applied = await kube.apply(body, subresource="status")
    assert applied["spec"]["size"] == 3 and applied["status"] == {"phase": "Ready", "replicas": 2}
    assert applied["metadata"]["generation"] == made["metadata"]["generation"]
    fewer = await kube.apply({**widget(), "status": {"phase": "Ready"}}, subresource="status")
    assert fewer["status"] == {"phase": "Ready"}
    spec = await kube.apply({**widget(size=4), "status": {"phase": "Other"}})
    assert spec["spec"]["size"] == 4 and spec["status"] == {"phase": "Ready"}


async def test_the_status_of_nothing_is_not_found(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.apply({**widget(), "status": {"phase": "Ready"}}, subresource="status")
    assert error.value.status == 404


async def test_an_apply_needs_a_manager(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.apply(widget(), manager="")
    assert error.value.status in {400, 422}


async def test_an_apply_is_checked_against_the_schema(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.apply(widget(size=11))
    assert error.value.status == 422 and "spec.size" in str(error.value.body)
    assert await kube.find(f"{GROUP}/v1", "Widget", "w") is None


async def test_an_apply_of_an_unknown_field_is_refused(kube: Kube, widget: Widget) -> None:
    with pytest.raises(ApiException) as error:
        await kube.apply(widget(colour="red"))
    assert "spec.colour" in str(error.value.body), error.value.status
    assert error.value.status == 500
    assert await kube.find(f"{GROUP}/v1", "Widget", "w") is None


async def test_an_apply_for_an_uid_that_is_gone_creates_nothing(kube: Kube, widget: Widget) -> None:
    body = widget()
    body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(ApiException) as error:
        await kube.apply(body)
    assert error.value.status == 409
    assert await kube.find(f"{GROUP}/v1", "Widget", "w") is None


async def test_an_apply_for_another_uid_changes_nothing(kube: Kube, widget: Widget) -> None:
    await kube.apply(widget())
    body = widget(size=5)
    body["metadata"]["uid"] = "00000000-0000-0000-0000-000000000000"
    with pytest.raises(ApiException) as error:
        await kube.apply(body)
    assert error.value.status == 422
    assert (await current(kube))["spec"]["size"] == 3


async def test_an_apply_to_an_old_version_conflicts(kube: Kube, widget: Widget) -> None:
    made = await kube.apply(widget())
    await kube.apply(widget(size=4))
    body = widget(size=5)
    body["metadata"]["resourceVersion"] = version(made)
    with pytest.raises(ApiException) as error:
        await kube.apply(body)
    assert error.value.status == 409


async def test_a_containers_environment_is_merged_by_name(kube: Kube) -> None:
    def deployment(*env: str) -> Object:
        container = {"name": "c", "image": "i", "env": [{"name": name, "value": "1"} for name in env]}
        more = {"ports": [{"name": "http", "containerPort": 8000, "protocol": "TCP"}], "args": ["--x"]}
        template = {"metadata": {"labels": {"app": "d"}}, "spec": {"containers": [{**container, **more}]}}
        spec = {"replicas": 0, "selector": {"matchLabels": {"app": "d"}}, "template": template}
        return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}

    made = await kube.apply(deployment("A", "B"))
    changed = await kube.apply(deployment("B", "C"))
    (container,) = changed["spec"]["template"]["spec"]["containers"]
    assert [each["name"] for each in container["env"]] == ["B", "C"]
    assert changed["metadata"]["generation"] == made["metadata"]["generation"] + 1
    assert (await kube.apply(deployment("B", "C")))["metadata"]["generation"] == changed["metadata"]["generation"]
