"""The commands that read photographs one by one: `predict` and `embed`. Room: cli/photographs."""
