"""Report pages: one HTML file each, which needs nothing else and no scripts. Room: pages.

What a page says is gathered where it is known, in `training/run_page.py` and `deploy/export_page.py`.
"""
