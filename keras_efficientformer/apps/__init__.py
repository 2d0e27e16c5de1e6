"""Makes apps around exported files: projects for Android and iOS, pages for browsers. Room: apps.

The names stand in `__init__.pyi`; what a name needs is imported when it is asked for.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
