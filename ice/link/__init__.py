"""A stream between two programs that starts on a relay and becomes direct by itself.

Inside: :mod:`ice.link.session` keeps the octets in order over whatever *carriers* there are,
:mod:`ice.link.tls` and :mod:`ice.link.quic` are carriers, end-to-end encrypted, over one ICE
connection each, :mod:`ice.link.paths` makes ICE agents for them again and again, and
:mod:`ice.link.connect` is what programs call: :func:`ice.connect`.
"""
