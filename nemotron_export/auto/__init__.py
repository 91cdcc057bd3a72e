"""Loading under transformers' names: a script written for transformers runs here with another import line."""

from nemotron_export.auto.batch import TokenBatch
from nemotron_export.auto.models import AutoModelForCausalLM, infer_device
from nemotron_export.auto.tokenizer import AutoTokenizer, PretrainedTokenizer

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "PretrainedTokenizer", "TokenBatch", "infer_device"]
