"""The Visual Attention Network and large kernel attention. Importing this registers van_b0 to van_b6 with timm.

The models, and with them PyTorch, are loaded when timm is, or when a name of theirs is first used: an exported network
is run without either. The public names are listed in `__init__.pyi`.
"""

import importlib

import lazy_loader
from wrapt import register_post_import_hook

__version__ = "0.2.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

register_post_import_hook(lambda _: importlib.import_module("vankit.models.van"), "timm")
