"""The relay server as machines: no socket, no clock, no random number of its own."""
