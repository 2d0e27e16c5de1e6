from .android_app import write_android_app
from .ios_app import write_ios_app
from .projects import PhoneApp
from .web_app import WebApp, write_web_app

__all__ = ["PhoneApp", "WebApp", "write_android_app", "write_ios_app", "write_web_app"]
