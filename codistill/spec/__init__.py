"""What a user may ask for: `JobSpec` and its parts, the only configuration types there are.

A closed choice is a union told apart by `kind`. Unknown keys are refused. Nothing in a spec is a path, a URL or an
import: those would let whoever may submit a job run code or read files of the cluster. Everything here is plain data
and imports no torch, so the service can check a spec without it.

Read a spec with `codistill.spec_errors.parse_spec`, which names the bad key and what would be right.
"""

from codistill.spec.base import (
    NAME_PATTERN,
    OperatorName,
    Spec,
)
from codistill.spec.exchange import (
    All,
    AutoTransport,
    Exchange,
    FilesTransport,
    MemoryTransport,
    ObjectStoreTransport,
    Ring,
    Topology,
    Transport,
    Weights,
)
from codistill.spec.job import (
    SPEC_VERSION,
    JobSpec,
    Limits,
    replica_name,
)
from codistill.spec.methods import (
    DEFAULT_BURN_IN_FRACTION,
    Arm,
    Codistillation,
    Control,
    DataMode,
    Disjoint,
    LabelSmoothing,
    Method,
    Overlap,
    SameOrder,
    SameSet,
    Solo,
)
from codistill.spec.recipes import (
    Cnn,
    Digits,
    Images,
    Installed,
    Mlp,
    Recipe,
    ResNet,
    Tabular,
    Text,
)
from codistill.spec.training import (
    AdamW,
    Constant,
    Cosine,
    Linear,
    Loader,
    Milestones,
    Optimizer,
    Replicas,
    Schedule,
    Sgd,
    Training,
)

__all__ = [
    "DEFAULT_BURN_IN_FRACTION",
    "NAME_PATTERN",
    "SPEC_VERSION",
    "AdamW",
    "All",
    "Arm",
    "AutoTransport",
    "Cnn",
    "Codistillation",
    "Constant",
    "Control",
    "Cosine",
    "DataMode",
    "Digits",
    "Disjoint",
    "Exchange",
    "FilesTransport",
    "Images",
    "Installed",
    "JobSpec",
    "LabelSmoothing",
    "Limits",
    "Linear",
    "Loader",
    "MemoryTransport",
    "Method",
    "Milestones",
    "Mlp",
    "ObjectStoreTransport",
    "OperatorName",
    "Optimizer",
    "Overlap",
    "Recipe",
    "Replicas",
    "ResNet",
    "Ring",
    "SameOrder",
    "SameSet",
    "Schedule",
    "Sgd",
    "Solo",
    "Spec",
    "Tabular",
    "Text",
    "Topology",
    "Training",
    "Transport",
    "Weights",
    "replica_name",
]
