"""Exports a model in many modes, measures each on the user's images and recommends one."""
