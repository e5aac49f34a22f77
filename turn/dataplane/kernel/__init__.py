"""The data plane inside the Linux kernel: a BPF program on the interfaces, and what looks after it.

Theory of operation.  The program (``relay.bpf.c``) sits on the ingress side of the interfaces that
carry clients and peers.  What belongs to a bound channel it rewrites and sends out again; all else
it passes up unchanged, to the sockets.  What it knows is in maps, whose layouts are in ``relay.h``.

From below: :mod:`~turn.dataplane.kernel.layouts` writes and reads what is in the maps,
:mod:`~turn.dataplane.kernel.libbpf` makes the calls, :mod:`~turn.dataplane.kernel.support` says
whether all of it can be had here, and :mod:`~turn.dataplane.kernel.program` is the loaded program.
:mod:`~turn.dataplane.kernel.ways` knows where packets leave, :mod:`~turn.dataplane.kernel.sharing`
keeps rates that the kernel and the sockets use together, and with them
:mod:`~turn.dataplane.kernel.routes` is the data plane.
"""
