"""The tensors that each task's model has: names in the order of the modules, and shapes."""

from __future__ import annotations

from nemotron_errors import CheckpointError

from nemotron_export.config.config import NemotronConfig

__all__ = ["TASKS", "backbone_prefix", "expected_tensors", "is_matrix", "task_of_architecture"]

# Task -> (the prefix of the backbone's names, the class in transformers).
TASKS = {
    "causal-lm": ("model.", "NemotronForCausalLM"),
    "feature-extraction": ("", "NemotronModel"),
    "sequence-classification": ("model.", "NemotronForSequenceClassification"),
    "token-classification": ("model.", "NemotronForTokenClassification"),
    "question-answering": ("transformer.", "NemotronForQuestionAnswering"),
}


def backbone_prefix(task: str) -> str:
    """The prefix of the backbone's names in a task's state dict.

    Raises:
        CheckpointError: for a task that does not exist.
    """
    if task not in TASKS:
        raise CheckpointError(f"the task {task!r}", f"one of {', '.join(TASKS)}", "choose one of them", where="task")
    return TASKS[task][0]


def task_of_architecture(config: NemotronConfig) -> str:
    """The task of the first architecture that the config names, "causal-lm" where it names none."""
    named = config.architectures or []
    return next((task for name in named for task, (_, cls) in TASKS.items() if cls == name), "causal-lm")


def is_matrix(name: str) -> bool:
    """Whether a tensor takes part in a GEMM or a lookup (norms and biases may have another dtype)."""
    return name.endswith(".weight") and "norm." not in name


def expected_tensors(config: NemotronConfig, task: str = "causal-lm") -> dict[str, tuple[int, ...]]:
    """Names and shapes of a task's state dict, `lm_head.weight` included where it is tied.

    V vocabulary, E hidden_size, F intermediate_size, H/G query and key/value heads, D head_dim: projections are
    [out, in], the norms [E].

    Raises:
        CheckpointError: a task that does not exist.
        ConfigError: labels of a classification head that make no sense.
    """
    prefix = backbone_prefix(task)
    V, E, F = config.vocab_size, config.hidden_size, config.intermediate_size
    HD = config.num_attention_heads * config.head_dim
    GD = config.num_key_value_heads * config.head_dim
    attention = {"q_proj": (HD, E), "k_proj": (GD, E), "v_proj": (GD, E), "o_proj": (E, HD)}
    mlp = {"up_proj": (F, E), "down_proj": (E, F)}

    tensors: dict[str, tuple[int, ...]] = {f"{prefix}embed_tokens.weight": (V, E)}

    def linear(name: str, shape: tuple[int, ...], bias: bool) -> None:
        tensors[f"{name}.weight"] = shape
        if bias:
            tensors[f"{name}.bias"] = shape[:1]

    for layer in range(config.num_hidden_layers):
        at = f"{prefix}layers.{layer}."
        for projection, shape in attention.items():
            linear(f"{at}self_attn.{projection}", shape, config.attention_bias)
        for projection, shape in mlp.items():
            linear(f"{at}mlp.{projection}", shape, config.mlp_bias)
        linear(f"{at}input_layernorm", (E,), True)
        linear(f"{at}post_attention_layernorm", (E,), True)
    linear(f"{prefix}norm", (E,), True)

    if task == "causal-lm":
        linear("lm_head", (V, E), False)
    elif task == "sequence-classification":
        linear("score", (config.num_labels, E), False)
    elif task == "token-classification":
        linear("score", (config.num_labels, E), True)
    elif task == "question-answering":
        linear("qa_outputs", (2, E), True)
    return tensors
