"""The probe: a machine that runs NAT behaviour tests and yields observations.

:mod:`~nattype.probe.machine` is the machine; :mod:`~nattype.probe.strand` lets tests be written as
procedures; :mod:`~nattype.probe.bench` has the sockets; the tests are in
:mod:`~nattype.probe.contact`, :mod:`~nattype.probe.udp`, :mod:`~nattype.probe.tcp` and
:mod:`~nattype.probe.lifetime`.
"""
