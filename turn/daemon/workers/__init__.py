"""turnd in several processes: one supervisor, and workers that relay (``turnd --workers N``).

Theory of operation.  Python relays on one processor.  So with ``workers = N`` the process that was
started becomes the *supervisor*, which relays nothing, and starts N *workers*, each a turnd of its
own (:class:`turn.daemon.service.Turnd`) with everything in memory that its clients have.  What is
said to clients, to the operator and to systemd is what one process would say.

Who gets what comes in.  For every listener the supervisor binds N sockets with SO_REUSEPORT, UDP
and TCP alike, and gives each worker one.  The kernel picks among them by a hash of the five-tuple,
so a client stays with its worker.  The supervisor keeps the sockets: when a worker dies its own
stay in the group, the other clients are not spread anew, and what comes meanwhile waits for the
worker that takes its place.

What belongs to another worker.  Three things lead a client to an allocation from another five-tuple
than the allocation's: a RESERVATION-TOKEN, a MOBILITY-TICKET and a CONNECTION-ID.  The first octet
of each is the number of the worker that made it (1 to N).  A worker that is shown a number not its
own *hands over* (:mod:`turn.daemon.workers.handover`):

* a datagram goes to the owner as it came, with its five-tuple.  The owner answers from its own
  socket, which has the same address and port.  Both remember the five-tuple: what comes from it
  later is handed over, too, until the owner gives it back.
* a TCP connection goes to the owner as a descriptor (SCM_RIGHTS), with what was read from it.
* of a TLS or DTLS connection the keys cannot go.  The worker that accepted it keeps it, and pipes
  what is inside to the owner and back.

The owner authenticates; who hands over has only read a number.  So all of them know each other's
nonces and tickets: the secrets are the supervisor's.

What counts for all.  *Accounts*: :mod:`turn.daemon.workers.accounts` is memory that all processes
see.  Every worker writes down what users and client addresses have of it, and adds up what all
have before it admits more, under a lock: quotas and totals are exact.  *Rates*: the buckets of
users and clients are in the same memory, and each lease is taken from it.  *Relayed transport
addresses*: each worker has a share of the ports.  Which of them are open is there for all to see
(:mod:`turn.daemon.workers.openings`), so two clients of different workers reach each other as two
of one worker do.  *Budgets of strangers* (``requests_per_second_per_client``, ``unverified_*``) are
not shared but divided: each worker has an Nth.

What there is one of is the supervisor's: the metrics port, the admin socket, the rendezvous, the
exchange with other servers through Redis, the watch over this machine's addresses, the speaking to
systemd.  It asks the workers and adds up.  The counts of workers that are gone stay counted.

A worker that dies takes its allocations with it; the supervisor says so and starts another, after a
moment that grows if they die again and again.  One that has not been heard of for
:data:`turn.daemon.workers.crew.HUNG` seconds is killed.  When the supervisor dies, however, its
workers see the end of their lines and stop: none is ever left alone.

With workers turnd relays through sockets: the kernel's data plane needs no processes beside it, it
runs wherever the packets are.
"""
