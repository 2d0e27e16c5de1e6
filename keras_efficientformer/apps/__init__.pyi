from .web_app import WebApp, write_web_app

__all__ = ["WebApp", "write_web_app"]
