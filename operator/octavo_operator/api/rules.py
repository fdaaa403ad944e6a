"""Every rule that spans fields, in one place: CEL for the API server, and its twin in Python.

A test holds both against one corpus of manifests, judged by pydantic and by a real API server.
"""

from typing import Final

from octavo_operator.api.base import Rule, matches
from octavo_operator.api.quantities import quantity

OBJECT_NAME: Final = r"^[a-z]([-a-z0-9]{0,50}[a-z0-9])?$"

FLAGS_OF_THE_OPERATOR: Final = (
    r"^(--(served-model-name|host|port|admin-port|admin-host|max-model-len|dtype|drain-seconds|tensor-parallel-size|"
    r"swap-space|kv-offloading-size|api-key|ssl-certfile|ssl-keyfile|help)(=|$)|-h|--$)"
)
DOTS: Final = r"/[.]{1,2}(/|$)"
"""A part of a path that leads to where another path leads, too."""

LLM_DEPLOYMENT: Final = (
    Rule(
        cel=f"self.metadata.name.matches('{OBJECT_NAME}')",
        message="the name must begin with a letter, hold only a-z, 0-9 and '-', and have at most 52 characters: "
        "Services and Pods are named after it",
        holds=lambda o: matches(OBJECT_NAME, o.metadata.name),
        field="metadata.name",
    ),
)

SOURCES: Final = ("builtin", "path", "persistentVolumeClaim", "oci", "huggingFace", "s3", "http")
SOURCE: Final = (
    Rule(
        cel=f"[{', '.join(f'has(self.{name})' for name in SOURCES)}].filter(given, given).size() == 1",
        message=f"exactly one source must be given: {', '.join(SOURCES[:-1])} or {SOURCES[-1]}",
        holds=lambda s: len(s.model_dump(exclude_none=True)) == 1,
    ),
)

PATH: Final = (
    Rule(
        cel="!has(self.path) || !self.path.split('/').exists(part, part == '..')",
        message="must not lead out of itself with '..'",
        holds=lambda s: ".." not in s.path.split("/"),
        field="path",
    ),
)

HUGGING_FACE: Final = (
    Rule(
        cel="!self.repo.contains('..')",
        message="must not hold '..'",
        holds=lambda s: ".." not in s.repo,
        field="repo",
    ),
    Rule(
        cel="!self.revision.contains('..')",
        message="must not hold '..'",
        holds=lambda s: ".." not in s.revision,
        field="revision",
    ),
)

S3: Final = (
    Rule(
        cel=f"!self.uri.matches('{DOTS}')",
        message="must not hold a part that is '.' or '..'",
        holds=lambda s: not matches(DOTS, s.uri),
        field="uri",
    ),
)

SERVER: Final = (
    Rule(
        cel=f"!has(self.args) || !self.args.exists(arg, arg.matches('{FLAGS_OF_THE_OPERATOR}'))",
        message="these flags are set by the operator, from spec.model.name, server.maxModelLength, server.dtype, "
        "server.hostMemoryForKVCache and termination.drainSeconds, or would show a secret, or help instead of a "
        "server, or hide it from probes and gateway, who speak plain HTTP: --served-model-name, --host, --port, "
        "--admin-port, --admin-host, --max-model-len, --dtype, --swap-space, --kv-offloading-size, "
        "--tensor-parallel-size, --drain-seconds, --api-key, --ssl-certfile, --ssl-keyfile, --help, -h, --",
        holds=lambda s: not any(matches(FLAGS_OF_THE_OPERATOR, arg) for arg in s.args),
        field="args",
    ),
    Rule(
        cel="self.tensorParallelSize == 1",
        message="a model runs on one GPU so far: take a GPU with more memory, a shorter maxModelLength, or a smaller "
        "dtype",
        holds=lambda s: s.tensor_parallel_size == 1,
        field="tensorParallelSize",
    ),
)

CACHE: Final = (
    Rule(
        cel="quantity(string(self.size)).compareTo(quantity(string(oldSelf.size))) >= 0",
        message="a volume cannot shrink: give the old size or more, or take storage.cache out and add it again",
        holds=lambda _: True,
        field="size",
    ),
)

AUTOSCALING: Final = (
    Rule(
        cel="has(self.maxReplicas) || self.mode == 'External'",
        message="is required: it is what bounds the bill",
        holds=lambda a: a.max_replicas is not None or a.mode == "External",
        field="maxReplicas",
    ),
    Rule(
        cel="!has(self.maxReplicas) || self.minReplicas <= self.maxReplicas",
        message="must not be above maxReplicas",
        holds=lambda a: a.max_replicas is None or a.min_replicas <= a.max_replicas,
        field="minReplicas",
    ),
    Rule(
        cel="self.minReplicas > 0 || has(self.scaleToZero)",
        message="0 needs scaleToZero, which says when the last replica may go; {} takes its defaults",
        holds=lambda a: a.min_replicas > 0 or a.scale_to_zero is not None,
        field="minReplicas",
    ),
    Rule(
        cel="!has(self.scaleToZero) || self.minReplicas == 0",
        message="has no effect while minReplicas keeps a replica: give minReplicas 0, or leave this out",
        holds=lambda a: a.scale_to_zero is None or a.min_replicas == 0,
        field="scaleToZero",
    ),
)

SPEC: Final = (
    Rule(
        cel="!has(self.autoscaling) || self.autoscaling.mode != 'Internal' || self.replicas == 1",
        message="replicas is decided by autoscaling; leave it out, or give 1 where /scale has left another number",
        holds=lambda s: s.autoscaling is None or s.autoscaling.mode != "Internal" or s.replicas == 1,
        field="replicas",
    ),
    Rule(
        cel="!has(self.storage) || !has(self.storage.cache) || "
        "has(self.model.source.huggingFace) || has(self.model.source.s3) || has(self.model.source.http)",
        message="only a model from huggingFace, s3 or http is downloaded: the others need no cache",
        holds=lambda s: s.storage.cache is None or s.model.source.is_downloaded,
        field="storage.cache",
    ),
    Rule(
        cel="!has(self.server.hostMemoryForKVCache) || (has(self.resources) && has(self.resources.memory) && "
        "quantity(string(self.server.hostMemoryForKVCache)).compareTo(quantity(string(self.resources.memory))) < 0)",
        message="is a part of resources.memory: give that too, and more of it",
        holds=lambda s: (
            s.server.host_memory_for_kv_cache is None
            or (
                s.resources.memory is not None
                and quantity(s.server.host_memory_for_kv_cache) < quantity(s.resources.memory)
            )
        ),
        field="server.hostMemoryForKVCache",
    ),
)

ENV: Final = (
    Rule(
        cel="!(has(self.value) && has(self.valueFrom))",
        message="value and valueFrom exclude each other",
        holds=lambda e: e.value is None or e.value_from is None,
    ),
)

ENV_SOURCE: Final = (
    Rule(
        cel="has(self.secretKeyRef) != has(self.configMapKeyRef)",
        message="exactly one of secretKeyRef and configMapKeyRef must be given",
        holds=lambda e: (e.secret_key_ref is None) != (e.config_map_key_ref is None),
    ),
)

ACCELERATOR: Final = (
    Rule(
        cel="self.resourceName.contains('/') && !self.resourceName.contains('kubernetes.io/') && "
        "!self.resourceName.startsWith('requests.')",
        message="must be an extended resource, which has a domain that is not Kubernetes' own: nvidia.com/gpu, for one",
        holds=lambda a: (
            "/" in a.resource_name
            and "kubernetes.io/" not in a.resource_name
            and not a.resource_name.startswith("requests.")
        ),
        field="resourceName",
    ),
    Rule(
        cel="!self.resourceName.endsWith('/gpu') || self.count == 1",
        message="a replica runs on one GPU; more would stand idle",
        holds=lambda a: not a.resource_name.endswith("/gpu") or a.count == 1,
        field="count",
    ),
)

ROLLOUT: Final = (
    Rule(
        cel="self.maxSurge + self.maxUnavailable > 0",
        message="maxSurge and maxUnavailable must not both be 0: no pod could ever be replaced",
        holds=lambda r: r.max_surge + r.max_unavailable > 0,
    ),
)

NETWORK_PEER: Final = (
    Rule(
        cel="has(self.namespaceSelector) || has(self.podSelector)",
        message="at least one of namespaceSelector and podSelector must be given; {} means all",
        holds=lambda p: p.namespace_selector is not None or p.pod_selector is not None,
    ),
)
