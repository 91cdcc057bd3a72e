"""Loading under transformers' names: a script written for transformers runs here with another import line."""

from nemotron_export.auto.batch import TokenBatch
from nemotron_export.auto.chat_template import PretrainedTokenizer
from nemotron_export.auto.loading import AutoModelForCausalLM, AutoTokenizer, infer_device

__all__ = ["AutoModelForCausalLM", "AutoTokenizer", "PretrainedTokenizer", "TokenBatch", "infer_device"]
