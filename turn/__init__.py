"""TURN (RFC 8656): the relay server ``turnd`` and its client.

Nothing is here yet.  The relay will stand on the STUN package of this distribution: its codec, its
credentials and its drivers.  Until it does, this package deliberately exports nothing.
"""
