"""The method's modules: tensors in, tensors out. No files, no tokenizers, no logging.

Letters for dimensions: B batch, S text length, T any sequence length, P prompt length, D model
width, F feed-forward width, K experts, R expert rank.
"""

from pemt.nn.adapter import TargetAdapter
from pemt.nn.branches import BottleneckBranch, ExpertTensors, LoraBranch, ParallelExpert
from pemt.nn.by_task import ByTask
from pemt.nn.context import ForwardContext, Slot, bridge_summary, combine_loss, enter_backward
from pemt.nn.experts import ExpertBank
from pemt.nn.gate import PromptGate, UniformGate, prompt_mean
from pemt.nn.head import TaskHead
from pemt.nn.mixture import MixtureLayer
from pemt.nn.norm import TrainedNorm
from pemt.nn.prompt import CorrelationPrompt, TaskPrompt
from pemt.nn.sparsity import task_sparsity
from pemt.nn.weights import TrainedWeights
from pemt.nn.wrapped import WrappedLinear

__all__ = [
    "BottleneckBranch",
    "ByTask",
    "CorrelationPrompt",
    "ExpertBank",
    "ExpertTensors",
    "ForwardContext",
    "LoraBranch",
    "MixtureLayer",
    "ParallelExpert",
    "PromptGate",
    "Slot",
    "TargetAdapter",
    "TaskHead",
    "TaskPrompt",
    "TrainedNorm",
    "TrainedWeights",
    "UniformGate",
    "WrappedLinear",
    "bridge_summary",
    "combine_loss",
    "enter_backward",
    "prompt_mean",
    "task_sparsity",
]
