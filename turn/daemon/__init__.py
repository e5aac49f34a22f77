"""``turnd``: the relay server as a program, from its configuration to its operator's commands."""
