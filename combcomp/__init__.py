"Which combination of distillation, quantization and pruning makes a BERT classifier smallest at the score you need?"
__version__ = "0.1.0"
import logging as _logging, sys as _sys
from importlib import import_module as _import_module
from types import ModuleType as _ModuleType

# Public names and the modules they come from. A name loads its module, and with it torch, only when it is used.
_NAMES = dict(Run="config", run="grid", grid="grid", load_results="results", pack="pack", unpack="pack", sizes="models", export="export", load_exported="export", bench="speed", max_reduction="stats", interactions="stats", recommend="stats", own="own", save_pretrained="hub", load="hub", push_to_hub="hub")
__all__ = list(_NAMES)


class _Lazy(_ModuleType):
    "The package: `combcomp.pack` is the function also after the module of the same name was imported"
    def __getattr__(self, name):
        if name not in _NAMES: raise AttributeError(f"module 'combcomp' has no attribute {name!r}; it has {', '.join(_NAMES)}")
        return getattr(_import_module(f"combcomp.{_NAMES[name]}"), name)

    def __setattr__(self, name, value):
        if not (name in _NAMES and isinstance(value, _ModuleType)): super().__setattr__(name, value)

    def __dir__(self): return sorted({*super().__dir__(), *_NAMES})


# transformers loads torchao where it is installed, and what that has to say about its kernels would stand between our lines
for _name in ("torchao", "torch.utils._pytree"):
    if not _logging.getLogger(_name).level: _logging.getLogger(_name).setLevel(_logging.ERROR)

_sys.modules[__name__].__class__ = _Lazy
