"""Ways through NATs that plain checks do not find, on the agent's side.

Predicted ports are candidates like others (:mod:`ice.spread.predicted`).  Birthday probing sends
many packets, or dials many connections, until two of the two sides meet (:mod:`ice.spread.udp`,
:mod:`ice.spread.tcp`), after which all is ordinary ICE.  What opens this side's NAT without
reaching the peer's is in :mod:`ice.spread.openings`.
"""
