"""What the model can explain: per topic the names it goes by and several wordings of the answer."""

from __future__ import annotations

from typing import NamedTuple


class Topic(NamedTuple):
    """`names` fit "What is …?"; a right answer contains every one of `must`, whatever the case."""

    names: tuple[str, ...]
    must: tuple[str, ...]
    answers: tuple[str, ...]


TOPICS: dict[str, Topic] = {
    "token": Topic(
        ("a token", "tokens", "a token in a language model", "tokens in an LLM"),
        ("token", "piece"),
        (
            "A token is a small piece of text: a word, a part of a word, a digit or a mark. A language model reads and writes tokens, one after the other.",
            "Tokens are the pieces that text is cut into before a model reads it. Each token has a number, and the model predicts the number of the next one.",
            "A token is the unit a language model works with, a piece of text such as a short word or a part of a long one.",
        ),
    ),
    "tokenizer": Topic(
        ("a tokenizer", "tokenizers", "tokenization", "byte-pair encoding", "BPE"),
        ("text", "pieces"),
        (
            "A tokenizer cuts text into pieces called tokens and gives each a number. It also turns the numbers back into text.",
            "A tokenizer translates between text and token numbers. Byte-pair encoding builds its pieces by joining pairs that often occur together.",
        ),
    ),
    "attention": Topic(
        ("attention", "attention in a transformer", "self-attention", "the attention mechanism", "an attention layer"),
        ("attention", "earlier"),
        (
            "Attention lets each token look back at the earlier tokens and decide which of them matter. It compares a query with their keys and mixes their values.",
            "Attention is how a transformer uses context. Every token asks a question, all earlier tokens offer a key and a value, and the best matches count most.",
            "With attention, a token gathers what it needs from earlier tokens: the closer its query matches their keys, the more of their values it takes.",
        ),
    ),
    "kv_cache": Topic(
        (
            "a KV cache",
            "the KV cache",
            "KV cache",
            "a key-value cache",
            "the key-value cache",
            "KV caching",
            "the K/V cache",
        ),
        ("keys", "values"),
        (
            "A KV cache stores the keys and values of all earlier tokens, so that the model need not compute them again for every new token. It trades memory for speed.",
            "The KV cache is the model's memory of a conversation: the attention keys and values of every token so far. Thanks to it, each new token costs only one short step.",
            "A KV cache keeps the attention keys and values of tokens that were already read. It grows with every token, which is why it fills so much of the GPU's memory.",
        ),
    ),
    "paging": Topic(
        (
            "paging",
            "paged attention",
            "PagedAttention",
            "paging in an inference server",
            "a paged KV cache",
            "KV cache paging",
        ),
        ("pages", "cache"),
        (
            "Paging splits the KV cache into pages of equal size. A request takes pages as it grows and gives them back at its end, so little memory is wasted.",
            "With paged attention the KV cache lives in small pages that may lie anywhere in memory. A table says which pages belong to which request.",
            "Paging gives out the KV cache in small pages instead of one big piece for each request. More requests fit, and equal beginnings can share pages.",
        ),
    ),
    "page": Topic(
        ("a page", "a KV page", "a KV block", "a block table", "a page table"),
        ("page", "tokens"),
        (
            "A page is a block of the KV cache with room for a few tokens, often sixteen. A block table lists the pages of each request in order.",
            "A KV page holds the keys and values of a fixed number of tokens. The block table tells the attention kernel where each page lies.",
        ),
    ),
    "prefix_cache": Topic(
        ("a prefix cache", "prefix caching", "the prefix cache"),
        ("pages", "same"),
        (
            "A prefix cache keeps the pages of text that was already read. When another request begins with the same tokens, it reuses those pages and starts sooner.",
            "Prefix caching means that requests with the same beginning share its KV pages, so the beginning is computed only once.",
        ),
    ),
    "swapping": Topic(
        ("swapping", "swapping KV pages", "KV cache swapping", "preemption"),
        ("pages", "memory"),
        (
            "When GPU memory is full, the server can swap: it moves the KV pages of a request to the host's memory and brings them back later. The request waits, but nothing is lost.",
            "Swapping moves pages of a paused request out of GPU memory, and back in when there is room again. It is faster than computing them anew.",
        ),
    ),
    "gqa": Topic(
        ("grouped-query attention", "GQA"),
        ("query heads", "share"),
        (
            "In grouped-query attention several query heads share one head of keys and values. The KV cache gets smaller, and quality hardly suffers.",
            "Grouped-query attention lets groups of query heads share their keys and values, so that the KV cache needs less memory.",
        ),
    ),
    "batching": Topic(
        ("batching", "continuous batching", "a batch"),
        ("requests", "step"),
        (
            "Batching runs many requests through the model together. With continuous batching, new requests join and finished ones leave at every step.",
            "Continuous batching means that the server decides at each step which requests run together, so the GPU is always busy.",
        ),
    ),
    "prefill": Topic(
        ("prefill", "prefill and decode", "decoding", "the prefill phase", "the decode phase"),
        ("prompt", "decode"),
        (
            "Prefill reads the whole prompt at once and fills the KV cache. Decode then writes the answer, one token at each step.",
            "A request has two phases: prefill reads the prompt in big steps, and decode makes the answer token by token.",
        ),
    ),
    "temperature": Topic(
        ("temperature", "sampling temperature", "temperature in sampling"),
        ("temperature", "likely"),
        (
            "The temperature says how bold sampling is. At zero the most likely token is always taken; higher values give rarer tokens a chance.",
            "Temperature controls chance when the next token is picked. A low temperature sticks to likely tokens, a high one is more surprising.",
        ),
    ),
    "llm": Topic(
        ("a language model", "an LLM", "a large language model"),
        ("language model", "next token"),
        (
            "A language model is a program that predicts the next token of a text. Repeated many times, that makes whole answers.",
            "An LLM is a large language model: a neural network that learned from text to predict the next token.",
        ),
    ),
    "context": Topic(
        ("a context window", "the context window", "context length"),
        ("tokens", "once"),
        (
            "The context window is the number of tokens a model can see at once, the prompt and the answer together.",
            "The context length says how many tokens fit into one conversation. What lies outside it cannot be seen at once with the rest.",
        ),
    ),
    "gpu": Topic(
        ("a GPU", "GPUs", "a graphics card"),
        ("gpu", "parallel"),
        (
            "A GPU is a processor that does many small sums in parallel. Language models run on GPUs because they consist of huge matrix products.",
            "A GPU was made to draw pictures, but it is really good at doing thousands of sums in parallel, and that is what a model needs.",
        ),
    ),
    "kubernetes": Topic(
        ("Kubernetes", "kubernetes", "k8s"),
        ("kubernetes", "containers"),
        (
            "Kubernetes runs containers on many machines. You say what you want, and it keeps the world that way.",
            "Kubernetes is a system that starts, watches and restarts containers on a cluster of machines.",
        ),
    ),
    "pod": Topic(
        ("a pod", "pods", "a Kubernetes pod"),
        ("pod", "containers"),
        (
            "A pod is the smallest thing that Kubernetes runs: one or a few containers that live together on one machine.",
            "In Kubernetes a pod is a group of containers that start, move and stop together.",
        ),
    ),
    "transformer": Topic(
        ("a transformer", "transformers", "the transformer architecture"),
        ("transformer", "layers"),
        (
            "A transformer is a neural network made of layers. Each has attention, which looks at other tokens, and a small network that thinks about each token.",
            "The transformer is the design behind most language models: a stack of layers with attention in each of them.",
        ),
    ),
    "octavo": Topic(
        ("Octavo", "octavo", "the Octavo project"),
        ("language models", "kubernetes"),
        (
            "Octavo runs large language models on Kubernetes. It has its own server with paged attention and an operator that scales it.",
            "Octavo is a system that serves large language models on Kubernetes. An octavo is also a sheet folded into eight leaves: pages!",
        ),
    ),
}

QUESTIONS = (
    "What is {x}?",
    "What's {x}?",
    "What does {x} mean?",
    "Explain {x}.",
    "Explain {x} to me.",
    "Can you explain {x}?",
    "Tell me about {x}.",
    "Please explain {x} in simple words.",
    "In short, what is {x}?",
    "I keep hearing about {x}. What is it?",
    "Define {x}.",
    "How would you explain {x} to a child?",
    "Do you know what {x} is?",
    "What do people mean by {x}?",
    "Could you tell me what {x} is?",
    "Give me a short explanation of {x}.",
    "Help me understand {x}.",
    "How does {x} work?",
    "What is {x} good for?",
    "Why do we need {x}?",
    "Describe {x} in a sentence or two.",
    "I do not understand {x}.",
    "Quick question: what is {x}?",
    "Teach me about {x}.",
)
AGAIN = (
    "Say it in other words.",
    "Can you explain that again?",
    "I did not get it. Once more?",
    "Tell me more.",
    "Please explain it differently.",
    "What do you mean?",
)
