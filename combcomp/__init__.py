"Distillation, quantization and pruning of text encoders, in any combination"
__version__ = "0.1.0"
import logging
from importlib import import_module

# Public names and the modules they come from. A module, and with it torch, is loaded when a name is used.
NAMES = dict(
    Run="spec", run="study.runner", grid="study.sweep", load_results="study.store", pack="ship.packed_file",
    unpack="ship.packed_file", sizes="models.sizes", export="ship.runtimes", load_exported="ship.runtimes",
    verify="ship.verification", bench="ship.latency", max_reduction="study.reductions",
    interactions="study.reductions", recommend="study.recommendation", own="data.text_files",
    save_pretrained="share.hub", load="share.hub", push_to_hub="share.hub", calibrate="share.calibration",
    shrink="share.checkpoints")
__all__ = list(NAMES)


def __getattr__(name):
    if name not in NAMES:
        raise AttributeError(f"module 'combcomp' has no attribute {name!r}; it has {', '.join(NAMES)}")
    return getattr(import_module(f"combcomp.{NAMES[name]}"), name)


def __dir__():
    return sorted({*globals(), *NAMES})


# transformers loads torchao where it is installed; its warnings about kernels are not about this project
for name in ("torchao", "torch.utils._pytree"):
    if not logging.getLogger(name).level:
        logging.getLogger(name).setLevel(logging.ERROR)
del name
