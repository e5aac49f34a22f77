"""ICE (RFC 8445) over UDP and TCP, and hole punching through a rendezvous server.

Nothing is here yet.  The agent will stand on the STUN package of this distribution and on the relay
client of ``turn``.  Until it does, this package deliberately exports nothing.
"""
