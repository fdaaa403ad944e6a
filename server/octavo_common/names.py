"""Names that several parts must spell alike: labels, the field manager, metrics, ports."""

from typing import Final

API_GROUP: Final = "octavo.dev"
API_VERSION: Final = "v1alpha1"
KIND: Final = "LLMDeployment"
PLURAL: Final = "llmdeployments"
FIELD_MANAGER: Final = "octavo-operator"
LABEL_PREFIX: Final = "octavo.dev/"
DEPLOYMENT_LABEL: Final = "octavo.dev/deployment"
CACHE_LABEL: Final = "octavo.dev/cache"
REVISION_LABEL: Final = "octavo.dev/revision-of"
MANAGED_BY_LABEL: Final = "app.kubernetes.io/managed-by"
GATEWAY_SELECTOR: Final = "app.kubernetes.io/component=gateway"

SERVER_PORT: Final = 8000
ADMIN_PORT: Final = 8001
OPERATOR_PORT: Final = 8090
GATEWAY_PORT: Final = 8080

# Metrics of a replica. The `vllm:` names, labels and buckets are those that stock dashboards read.
METRIC_REQUESTS_RUNNING: Final = "vllm:num_requests_running"
METRIC_REQUESTS_WAITING: Final = "vllm:num_requests_waiting"
METRIC_KV_CACHE_USAGE: Final = "vllm:kv_cache_usage_perc"
METRIC_PREEMPTIONS: Final = "vllm:num_preemptions"
METRIC_KV_TOKENS_USED: Final = "octavo:kv_tokens_used"
METRIC_KV_TOKENS_TOTAL: Final = "octavo:kv_tokens_total"
METRIC_WAITING_PROMPT_TOKENS: Final = "octavo:waiting_prompt_tokens"
METRIC_PREFILL_RATE: Final = "octavo:prefill_tokens_per_second"
METRIC_DECODE_RATE: Final = "octavo:decode_tokens_per_second"

# Metrics of the gateway, by model. Counters are written without `_total`, as `prometheus_client` names them.
METRIC_GATEWAY_HELD_REQUESTS: Final = "octavo:gateway_held_requests"
METRIC_GATEWAY_HELD_TOKENS: Final = "octavo:gateway_held_tokens"
METRIC_GATEWAY_IN_FLIGHT: Final = "octavo:gateway_in_flight"
METRIC_GATEWAY_ARRIVALS: Final = "octavo:gateway_arrivals"
METRIC_GATEWAY_ARRIVED_TOKENS: Final = "octavo:gateway_arrived_prompt_tokens"
METRIC_GATEWAY_FINISHED: Final = "octavo:gateway_finished"
METRIC_GATEWAY_LATE_TTFT: Final = "octavo:gateway_late_ttft"
METRIC_GATEWAY_LATE_TPOT: Final = "octavo:gateway_late_tpot"
