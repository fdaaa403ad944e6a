"""Flags of `vllm serve` that `octavo serve` has not, each with what there is instead, or why there is nothing.

Their names are from vLLM's sources of 2026, and some from earlier ones. docs/from-vllm.md has the same list; a test
compares the two.
"""

from typing import Final

NOT_HERE: Final[dict[str, str]] = {
    "MODEL is the argument: octavo serve MODEL": "--model",
    "nothing is downloaded: fetch the model first (octavo pull hf://ORG/NAME@REVISION DIR), and give DIR": (
        "--revision --code-revision --download-dir --hf-token --hf-config-path --ignore-patterns"
    ),
    "the tokenizer is the one in the model's directory": (
        "--tokenizer --tokenizer-mode --tokenizer-revision --skip-tokenizer-init --tokenizer-pool-size"
    ),
    "it is read from the model's directory: change config.json there": (
        "--hf-overrides --config-format --model-impl --rope-scaling --rope-theta --disable-sliding-window"
    ),
    "the model's generation_config.json is read: change it there, or let requests say it": (
        "--generation-config --override-generation-config"
    ),
    "code that comes with a model or from elsewhere is never run": (
        "--trust-remote-code --logits-processors --logits-processor-pattern --middleware --io-processor-plugin "
        "--tool-parser-plugin --reasoning-parser-plugin --scheduler-cls --worker-cls --worker-extension-cls "
        "--model-class-overrides"
    ),
    "there is no quantization: weights have the type that --dtype says": (
        "--quantization -q --quantization-config --allow-deprecated-quantization"
    ),
    "pages of the KV cache have the type that --dtype says": (
        "--kv-cache-dtype --calculate-kv-scales --quantization-param-path"
    ),
    "safetensors are read, in one way": (
        "--model-loader-extra-config --safetensors-load-strategy --safetensors-prefetch-num-threads "
        "--pt-load-map-location --use-tqdm-on-load --max-parallel-loading-workers"
    ),
    "a server has one GPU: start one for each, or give a manifest more replicas": (
        "--pipeline-parallel-size -pp --data-parallel-size -dp --data-parallel-rank --data-parallel-start-rank "
        "--data-parallel-size-local --data-parallel-address --data-parallel-rpc-port --data-parallel-backend "
        "--data-parallel-hybrid-lb --data-parallel-external-lb --distributed-executor-backend "
        "--prefill-context-parallel-size --decode-context-parallel-size -dcp --nnodes --node-rank --master-addr "
        "--master-port --device-ids --disable-custom-all-reduce --ray-workers-use-nsight --headless"
    ),
    "write --tensor-parallel-size": "-tp",
    "there are no experts": "--enable-expert-parallel -ep --enable-eplb --eplb-config --all2all-backend --enable-dbo",
    "there is one API process, in which text is worked on by threads": (
        "--api-server-count -asc --renderer-num-workers --disable-frontend-multiprocessing"
    ),
    "prompts are always cut into chunks; --max-num-batched-tokens bounds a step": (
        "--enable-chunked-prefill --long-prefill-token-threshold --max-num-partial-prefills "
        "--max-long-partial-prefills --max-num-scheduled-tokens"
    ),
    "by priority, then by arrival, is how requests are ordered": "--scheduling-policy",
    "pages leave for --swap-space and --disk-cache-dir": "--kv-offloading-backend --cpu-cache-size",
    "weights stay on the device": "--cpu-offload-gb --offload-backend --cpu-offload-params",
    "pages are not sent to other servers; prefill and decode are of one engine": (
        "--kv-transfer-config --kv-events-config --ec-transfer-config --weight-transfer-config "
        "--disable-hybrid-kv-cache-manager"
    ),
    "there is one hash, and what it finds is compared": "--prefix-caching-hash-algo",
    "graphs are captured as they are needed; --enforce-eager makes none": (
        "--compilation-config -cc --optimization-level -O --cudagraph-capture-sizes --cuda-graph-sizes "
        "--max-cudagraph-capture-size --max-seq-len-to-capture --performance-mode"
    ),
    "kernels are Octavo's own, and there is nothing to choose": (
        "--attention-backend --attention-config -ac --kernel-config --moe-backend --linear-backend --mamba-config "
        "--disable-cascade-attn --additional-config"
    ),
    "there is no speculative decoding": (
        "--speculative-config -sc --speculative-model --num-speculative-tokens --spec-method --spec-model --spec-tokens"
    ),
    "there are no LoRA adapters": (
        "--enable-lora --lora-modules --max-loras --max-lora-rank --max-cpu-loras --lora-dtype --fully-sharded-loras "
        "--lora-target-modules --lora-extra-vocab-size"
    ),
    "models take and give text only": (
        "--limit-mm-per-prompt --mm-processor-kwargs --media-io-kwargs --mm-processor-cache-gb "
        "--mm-processor-cache-type --mm-encoder-tp-mode --mm-encoder-only --enable-mm-embeds --skip-mm-profiling "
        "--interleave-mm-strings --video-pruning-rate --allowed-local-media-path --allowed-media-domains "
        "--language-model-only --disable-chunked-mm-input"
    ),
    "a prompt is text or token ids": "--enable-prompt-embeds",
    "a deployment is scaled to 0 instead": "--enable-sleep-mode",
    "what a model makes, text or embeddings, its config.json says": "--runner --convert --task",
    "write --pooling, --pooling-normalize and --matryoshka": "--pooler-config --override-pooler-config",
    "write --reasoning-parser": "--enable-reasoning",
    "requests say it: chat_template_kwargs; or change the template: --chat-template": "--default-chat-template-kwargs",
    "templates of requests are not rendered, as they are programs": "--trust-request-chat-template",
    "it is always so": (
        "--enable-prompt-tokens-details --enable-request-id-headers --exclude-tools-when-tool-choice-none"
    ),
    "requests ask for it: stream_options.include_usage": "--enable-force-include-usage",
    "requests ask for it: return_tokens_as_token_ids": "--return-tokens-as-token-ids",
    "answers have the role assistant": "--response-role",
    "tools are run by clients": "--tool-server",
    "20 alternatives to a token at most, as at OpenAI": "--max-logprobs",
    "log-probabilities are the model's own, before penalties and grammars": "--logprobs-mode",
    "there is one, llguidance": "--structured-outputs-config --guided-decoding-backend",
    "events come with the steps that bring tokens": "--stream-interval",
    "it is not there: what it tells stands in the model's files": "--enable-tokenizer-info-endpoint",
    "answers have no system_fingerprint": "--fingerprint-mode --fingerprint-value",
    "no log has prompts or answers; --log-requests says which requests have a line": (
        "--disable-log-requests --enable-log-requests --max-log-len --enable-log-outputs --enable-log-deltas "
        "--disable-uvicorn-access-log --disable-access-log-for-endpoints"
    ),
    "write --log-level and --log-format": "--uvicorn-log-level --log-config-file --log-error-stack",
    "figures are at /metrics, all of them always": (
        "--disable-log-stats --aggregate-engine-logging --enable-server-load-tracking --enable-per-request-metrics "
        "--show-hidden-metrics-for-version --kv-cache-metrics --kv-cache-metrics-sample --cudagraph-metrics "
        "--enable-mfu-metrics --enable-logging-iteration-details"
    ),
    "a span has all there is to tell": "--collect-detailed-traces",
    "write --profile-dir": "--profiler-config --enable-layerwise-nvtx-tracing",
    "write --drain-seconds": "--shutdown-timeout",
    "HTTP over TCP is spoken: --host and --port": "--uds --grpc",
    "leave a path's prefix to the proxy that adds it": "--root-path",
    "TLS is 1.2 and later, with OpenSSL's choice of ciphers": "--ssl-ciphers",
    "bounds are fixed: docs/access.md": "--h11-max-incomplete-event-size --h11-max-header-count",
    "there is /openapi.json, and no page that shows it": "--disable-fastapi-docs --enable-offline-docs",
    "flags stand on the command line, or in a manifest's server.args": "--config",
}
_WHY: Final = {flag: why for why, flags in NOT_HERE.items() for flag in flags.split()}


def instead(flag: str) -> str | None:
    """What to say of a flag that is vLLM's, in any spelling that vLLM takes; None of one that is not."""
    name = flag.partition("=")[0].partition(".")[0].replace("_", "-")  # --compilation-config.mode
    short = name if name.startswith("--") else name[:2]  # -O3
    for known in (name, name.replace("--no-", "--", 1), short):
        if known in _WHY:
            return f"{known} is vLLM's and not here: {_WHY[known]}"
    return None
