"""An adapted model made smaller: pruned of experts, or folded into one LoRA for plain PEFT."""

from pemt.deploy.folder import write_folded
from pemt.deploy.folding import Folded, fold_lora, fold_mixture, folded_model
from pemt.deploy.measuring import AtHand, at_hand
from pemt.deploy.pruning import Pruning, prune_model, pruning_of

__all__ = [
    "AtHand",
    "Folded",
    "Pruning",
    "at_hand",
    "fold_lora",
    "fold_mixture",
    "folded_model",
    "prune_model",
    "pruning_of",
    "write_folded",
]
