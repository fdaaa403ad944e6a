"""Which commit a branch is now: asked by a Job, once for a spec, so that all its pods download the same model."""

from collections.abc import Awaitable, Callable
from typing import Any

from octavo_common.names import REVISION_LABEL
from octavo_operator import drift
from octavo_operator.api import LLMDeployment
from octavo_operator.cache import CacheState
from octavo_operator.downloads import told_revision
from octavo_operator.events import Event
from octavo_operator.jobs import has_condition, is_terminating, pods_of, why_it_failed
from octavo_operator.kube import Kube
from octavo_operator.observation import CHILD_TERMINATING, DOWNLOAD_FAILED, Problem, Verdict
from octavo_operator.pods import unscheduled, why_it_fails
from octavo_operator.render import (
    RenderSettings,
    pull_source,
    revision_job,
    revision_name,
    revision_name_of,
    revision_policy,
)

Manifest = dict[str, Any]


async def find_revision(
    kube: Kube,
    settings: RenderSettings,
    deployment: LLMDeployment,
    digest: str,
    expect_alive: Callable[[], Awaitable[None]],
) -> CacheState:
    """Ask, wait for the answer, or take it. `digest`: of the spec, whose changes are what has it asked again.

    Until there is a `revision`, `cached` says that it is asked for.

    Raises:
        KubeError: the API server refused, or did not answer.
    """
    name, namespace, source = revision_name(deployment), deployment.namespace, deployment.spec.model.source
    wanted = drift.stamped(revision_job(deployment, settings, digest))
    state = CacheState(cached=Verdict("False", "Resolving", f"Job {name} asks which commit {pull_source(source)} is"))
    live = await kube.find("Job", namespace, name)
    if live is None:
        await expect_alive()
        await _let_out(kube, deployment, state)
        await kube.create_by_apply(wanted)
        state.actions.append(Event("Normal", "Created", f"created Job {name}"))
    elif drift.controller_uid(live) != deployment.metadata.uid:
        text = f"there is a Job {name}, not made for this LLMDeployment; it is left alone: delete it"
        state.problem = Problem("NameConflict", text)
    elif is_terminating(live):
        state.problem = Problem(CHILD_TERMINATING, f"the Job {name} is being replaced")
    elif drift.digest(live) != drift.digest(wanted):
        await _replace(kube, live, state)
    else:
        await _look(kube, live, deployment, state)
    return state


async def ask_no_more(kube: Kube, owner: Manifest) -> list[Event]:
    """Delete what `owner`, an LLMDeployment that has nothing to ask for, needs no more: the policy, and the Job.

    A Job that has ended goes by itself.

    Raises:
        KubeError: the API server refused, or did not answer.
    """
    metadata, actions = owner["metadata"], []
    for kind in ("Job", "NetworkPolicy"):
        live = await kube.find_ours(kind, metadata["namespace"], revision_name_of(metadata["name"]))
        if live is None or drift.controller_uid(live) != metadata["uid"] or is_terminating(live):
            continue
        if has_condition(live, "Complete") or has_condition(live, "Failed"):
            continue
        await kube.delete(live)
        text = f"deleted {kind} {live['metadata']['name']}: the commit need not be asked for"
        actions.append(Event("Normal", "Deleted", text))
    return actions


async def _let_out(kube: Kube, deployment: LLMDeployment, state: CacheState) -> None:
    """Before the Job, which would have its first attempts for nothing."""
    policy = revision_policy(deployment)
    if policy is None:
        return
    wanted = drift.stamped(policy)
    live = await kube.find("NetworkPolicy", deployment.namespace, revision_name(deployment))
    if live is None:
        await kube.create_by_apply(wanted)
        state.actions.append(Event("Normal", "Created", f"created NetworkPolicy {revision_name(deployment)}"))
    elif drift.controller_uid(live) == deployment.metadata.uid and not drift.in_sync(wanted, live):
        await kube.update_by_apply(wanted, live["metadata"]["uid"])


async def _look(kube: Kube, job: Manifest, deployment: LLMDeployment, state: CacheState) -> None:
    name, namespace = job["metadata"]["name"], deployment.namespace
    pods = pods_of(job, await kube.select("Pod", namespace, f"{REVISION_LABEL}={deployment.name}"))
    if has_condition(job, "Complete"):
        state.revision = next((told for pod in pods if (told := told_revision(pod)) is not None), None)
        if state.revision is None:  # its pod is gone, and what it told with it
            await _replace(kube, job, state)
            return
        state.cached = None
        policy = await kube.find("NetworkPolicy", namespace, name)
        if policy is not None and drift.controller_uid(policy) == deployment.metadata.uid:
            await kube.delete(policy)
            state.actions.append(Event("Normal", "Deleted", f"deleted NetworkPolicy {name}: the commit is known"))
    elif has_condition(job, "Failed"):
        text = f"it cannot be told which commit the model is: {why_it_failed(job, pods)}"
        text += f"; mend that and delete Job {name}, or give a commit as spec.model.source.huggingFace.revision"
        state.cached, state.problem = Verdict("False", DOWNLOAD_FAILED, text), Problem(DOWNLOAD_FAILED, text)
    elif (words := why_it_fails(pods) or "; ".join(unscheduled(pods).messages)) and state.cached is not None:
        state.cached = Verdict("False", "Resolving", f"{state.cached.message}: {words}")


async def _replace(kube: Kube, job: Manifest, state: CacheState) -> None:
    await kube.delete(job)
    state.actions.append(Event("Normal", "Deleted", f"deleted Job {job['metadata']['name']}: it is asked anew"))
    state.problem = Problem(CHILD_TERMINATING, f"the Job {job['metadata']['name']} is being replaced")
