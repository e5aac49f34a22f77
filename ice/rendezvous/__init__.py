"""Where two programs meet before they have a connection.

The server (:mod:`ice.rendezvous.server`, ``rendezvousd``) pairs two that name the same name and
forwards what they say; :class:`ice.rendezvous.meeting.Meeting` is one side of that, proved by
a code word, so that the server can read and change nothing.
"""
